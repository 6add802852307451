"""Rows to test on: given or cut from the data, aligned with the heads that answer them, counted where they leak."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from plait.amalgamation.label_space import LabelSpace
from plait.checkpoints.checkpoint import Checkpoint
from plait.data import Examples, align_labels, held_back
from plait.errors import DataError, RecipeError, did_you_mean, listed
from plait.evaluation import primary_metric

logger = logging.getLogger("plait")
GIVEN, CUT = "given", "cut from data"


@dataclass(frozen=True)
class TestSet:
    """Labelled rows of one task, and who is to answer them.

    Attributes:
        name: of the task in the answer.
        rows: with labels in the order of `labels`.
        members: places of the sources that know the task; all of them where the rows span the labels of several.
        task: of a merge, whose head answers; None where the rows span the labels of several.
        labels: their names; None for numbers and answers.
        problem: what logits mean.
        metric: that stands for the task.
        origin: `given`, or `cut from data`.
        overlap: rows that also stand in the data that candidates are made of.
    """

    __test__ = False
    name: str
    rows: Examples
    members: tuple[int, ...]
    task: str | None
    labels: tuple[str, ...] | None
    problem: str | None
    metric: str
    origin: str = GIVEN
    overlap: int = 0

    @property
    def across(self) -> bool:
        """Says whether the rows span the labels of several sources: nobody is told whose head to ask."""
        return self.task is None


def cut(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Returns the rows to combine with and those to test on; no row is in both, repeated texts neither.

    Raises:
        DataError: too few rows for both.
    """
    kept, held = held_back(len(examples), share, seed)
    test = examples.select(held.tolist())
    seen = set(keys(test))
    rest = [row for row in kept.tolist() if _key(examples, row) not in seen]
    if not rest or not len(test):
        raise DataError(
            f"{examples.source}: {len(examples)} rows are too few to be cut into data and test; give --test NAME=FILE"
        )
    return examples.select(rest), test


def keys(examples: Examples) -> list[tuple[Any, ...]]:
    """Returns what makes a row the same row: its text and its pair."""
    return [_key(examples, row) for row in range(len(examples))]


def _key(examples: Examples, row: int) -> tuple[Any, ...]:
    return (examples.texts[row], None if examples.pairs is None else examples.pairs[row])


def leaked(test: Examples, used: Iterable[Examples]) -> int:
    """Returns how many test rows also stand in data that candidates are made of."""
    known = {key for examples in used for key in keys(examples)}
    return sum(key in known for key in keys(test))


def of_task(  # noqa: PLR0917 - what a test is made of
    name: str, rows: Examples, task: str, members: Sequence[int], sources: Sequence[Checkpoint], origin: str
) -> TestSet:
    """Returns the rows of one task, with labels as its first source counts them.

    Raises:
        DataError: no labels, or labels that the head does not have.
    """
    source = sources[members[0]]
    if rows.labels is None:
        raise DataError(rows.lacks_labels(f"expected a label column to score {name} on"))
    kind, problem = cast(Any, source.kind), cast(Any, source.problem_type)
    aligned = align_labels(rows, source.labels, kind=kind, problem_type=problem)
    if source.labels is not None and problem != "regression":
        aligned = replace(aligned, label_names=source.labels)
    metric = primary_metric(kind, problem)
    return TestSet(name, aligned, tuple(members), task, source.labels, problem, metric, origin)


def over_all(name: str, rows: Examples, space: LabelSpace) -> TestSet:
    """Returns rows over the labels of all sources, which are classifiers of single labels."""
    if rows.labels is None:
        raise DataError(rows.lacks_labels(f"expected a label column to score {name} on"))
    single: Any = "single_label_classification"
    aligned = align_labels(rows, space.names, kind="sequence_classification", problem_type=single)
    used = set(aligned.labels or ())
    if owner := next((n for n, own in zip(space.teachers, space.columns, strict=True) if used <= set(own)), None):
        raise DataError(f"{rows.source}: all its labels are those of {owner}; call it {owner} (--test {owner}=FILE)")
    members = tuple(range(len(space.teachers)))
    return TestSet(name, aligned, members, None, space.names, single, primary_metric("sequence_classification", single))


def check_names(
    given: Mapping[str, Any], sources: Sequence[Checkpoint], tasks: Mapping[str, Any], *, free: bool
) -> None:
    """Raises `RecipeError` for test rows of nobody, unless names are free."""
    known = dict.fromkeys([*(s.name for s in sources), *tasks])
    strangers = [name for name in given if name not in known]
    if strangers and not free:
        raise RecipeError(listed(f"test rows of no source or task {n!r}{did_you_mean(n, known)}" for n in strangers))
