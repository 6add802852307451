"""A teacher: what a checkpoint must be to teach, and what a store says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from plait.checkpoints.beside import FOREIGN
from plait.checkpoints.source import Checkpoint
from plait.errors import RecipeError, SourceError, listed


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
