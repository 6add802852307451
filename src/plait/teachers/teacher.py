"""A teacher: what a checkpoint must be to teach, and how a store identifies it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from torch import nn
from transformers import PreTrainedModel

from plait.checkpoints import parameter_names
from plait.checkpoints.beside import FOREIGN
from plait.checkpoints.checkpoint import Checkpoint
from plait.encoders.families import FAMILIES
from plait.encoders.modes import DEAD, acts, batchnorm_problem
from plait.encoders.replay import Encoder, encoder_of
from plait.errors import RecipeError, SourceError, listed
from plait.teachers.settings import Settings


@dataclass(frozen=True)
class Teacher:
    """A teacher as a store knows it.

    Attributes:
        name: what the user calls it.
        origin: the folder or Hub id it came from.
        digest: of its weights.
        circumstances: of its configuration and tokenizer, on which its answers depend as well.
        labels: its classes in the order of its logits.
        architecture: the class of its model.
        max_length: tokens its texts were cut at; None as long as nothing is scored.
    """

    name: str
    origin: str
    digest: str
    circumstances: str
    labels: tuple[str, ...]
    architecture: str
    max_length: int | None = None

    @property
    def folder(self) -> str:
        """Returns the name as a name of a folder."""
        return (
            quote(self.name, safe=" ").replace(".", "%2E")
            if set(self.name) <= {"."}
            else quote(self.name, safe=" ")
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Teacher:
        """Returns the teacher that a record of `store.json` describes."""
        known = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**{**known, "labels": tuple(record["labels"])})


def teacher_of(checkpoint: Checkpoint) -> Teacher:
    """Returns what a store records of a checkpoint."""
    return Teacher(
        checkpoint.name,
        checkpoint.origin,
        checkpoint.digest,
        checkpoint.circumstances,
        checkpoint.labels or (),
        checkpoint.architecture,
    )


def check_teachers(teachers: Sequence[Checkpoint], *, logits_only: bool = False) -> None:
    """Raises one error for all checkpoints that cannot teach.

    Args:
        teachers: The checkpoints.
        logits_only: Whether nothing but their logits is wanted, which may then mean several labels or a number.

    Raises:
        SourceError: not a classifier of texts into one of several labels.
        RecipeError: no teacher, or two of one name.
    """
    if not teachers:
        raise RecipeError("no teachers given: name at least one checkpoint")
    twice = sorted(name for name, count in Counter(t.name for t in teachers).items() if count > 1)
    if twice:
        raise RecipeError(
            f"several teachers are called {listed(twice)}: give each a name of its own (name=folder)"
        )
    problems = [f"{t.name} {why}" for t in teachers if (why := _unfit(t, logits_only=logits_only))]
    if problems and logits_only:
        raise SourceError(f"not a teacher: {listed(problems)}; expected classifiers or regressions of texts")
    if problems:
        raise SourceError(
            f"not a teacher: {listed(problems)}; expected sequence classifiers with two or more labels, one per text"
        )


def _unfit(teacher: Checkpoint, *, logits_only: bool) -> str | None:
    if teacher.kind == "body":
        beside = [name for name in FOREIGN if (teacher.folder / name).is_file()]
        said = f"; {listed(beside)} beside it, such as SetFit writes, cannot be used" if beside else ""
        return f"has no classification head ({teacher.architecture}{said})"
    if teacher.kind != "sequence_classification":
        return f"is a model for {teacher.kind.replace('_', ' ')} ({teacher.architecture})"
    return None if logits_only else _no_single_label(teacher)


def _no_single_label(teacher: Checkpoint) -> str | None:
    if teacher.problem_type == "regression":
        return f"is a regression model (outputs: {teacher.config.num_labels})"
    if teacher.problem_type == "multi_label_classification":
        return "gives a text several labels (multi-label)"
    if len(teacher.labels or ()) < 2:
        return f"has only the label {listed(teacher.labels or ())}"
    return None


logger = logging.getLogger("plait")


def check_mc_dropout(teachers: Sequence[Checkpoint], settings: Settings) -> None:
    """Raises one `SourceError` for all teachers that cannot be scored with these settings."""
    problems = []
    for teacher in teachers:
        model = parameter_names.skeleton(teacher.model_class, teacher.config, str(teacher.folder))
        problem = without_padding(model) or unable(model, settings) or _without_dropout(model, settings)
        problem = problem or _without_features(teacher, settings)
        if problem:
            problems.append(f"{teacher.name}: {problem}")
        elif settings.passes and settings.last_layers != 0 and _only_head_drops(model, settings):
            logger.warning("%s: only its head has dropout; --dropout RATE injects it elsewhere", teacher.name)
    if problems:
        raise SourceError(listed(problems))


def without_padding(model: PreTrainedModel) -> str | None:
    """Returns why texts cannot share a batch: decoders find the last token of a text by its padding."""
    lacking = hasattr(model, "score") and model.config.get_text_config().pad_token_id is None
    return "its configuration has no pad_token_id; set it to that of its tokenizer" if lacking else None


def label_layers(teacher: Checkpoint) -> int:
    """Returns how many layers of a teacher's head have the labels as rows; what it reads is known where it is one."""
    return sum(name.endswith(".weight") for name in teacher.label_parameters)


def _without_features(teacher: Checkpoint, settings: Settings) -> str | None:
    """Returns why what the head reads cannot be kept: it is not known which layer gives the labels."""
    count = label_layers(teacher)
    if not settings.keeps("features") or count == 1:
        return None
    return f"{count} layers have the labels as rows, expected one; choose a gate that needs no features, such as energy"


def unable(model: PreTrainedModel, settings: Settings) -> str | None:
    """Returns why a model cannot be scored: layers that train mode would change, or too few layers."""
    encoder = encoder_of(model)
    if settings.last_layers is not None:
        if encoder is None:
            return f"the layers of a {type(model).__name__} are not known; leave last_layers out"
        if settings.last_layers > encoder.depth:
            return f"last_layers is {settings.last_layers}, the teacher has {encoder.depth} layers; ask for fewer"
    return batchnorm_problem(model) if settings.passes else None


def _without_dropout(model: PreTrainedModel, settings: Settings) -> str | None:
    """Returns why passes would be the same; of unknown classes, which may drop in their own way, only trying tells."""
    encoder = encoder_of(model)
    if not settings.passes or settings.dropout is not None or encoder is None:
        return None
    known = model.config.model_type in FAMILIES
    return DEAD if known and not acts(acting_modules(model, encoder, settings.last_layers)) else None


def _only_head_drops(model: PreTrainedModel, settings: Settings) -> bool:
    """Says whether all that varies is the head: ALBERT has no dropout in its body unless its config says so."""
    known = model.config.model_type in FAMILIES
    return known and settings.dropout is None and not acts(model.base_model.modules())


def acting_modules(
    model: PreTrainedModel, encoder: Encoder, last_layers: int | None
) -> tuple[nn.Module, ...]:
    """Returns the modules that are in train mode for the passes."""
    if last_layers is None:
        return tuple(model.modules())
    return tuple(_upper_modules(model, encoder.last(last_layers)))


def _upper_modules(model: PreTrainedModel, layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Yields the modules of the given layers, of the pooler and of the head."""
    body = model.base_model
    for part in (*layers, getattr(body, "pooler", None)):
        if isinstance(part, nn.Module):
            yield from part.modules()
    inside = set(body.modules())
    yield from (module for module in model.modules() if module not in inside and module is not model)
