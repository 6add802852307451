"""Whether a model can be asked with dropout, known from its class and configuration before any weight is read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from torch import nn
from transformers import PreTrainedModel

from plait.checkpoints import naming
from plait.checkpoints.families import FAMILIES
from plait.checkpoints.source import Checkpoint
from plait.errors import SourceError, listed
from plait.statistics.posteriors.dropout import DEAD, acts, batchnorm_problem
from plait.statistics.posteriors.layers import Encoder, encoder_of
from plait.statistics.posteriors.settings import Settings

logger = logging.getLogger("plait")


def check_able(teachers: Sequence[Checkpoint], settings: Settings) -> None:
    """Raises one `SourceError` for all teachers that cannot be scored with these settings."""
    problems = []
    for teacher in teachers:
        model = naming.skeleton(teacher.model_class, teacher.config, str(teacher.folder))
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
