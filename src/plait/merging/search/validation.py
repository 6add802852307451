"""Rows that a search judges by, kept apart from the rows that its result is scored on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from plait.checkpoints.checkpoint import Checkpoint
from plait.data import Examples, align_labels
from plait.data.examples import held_back
from plait.errors import DataError, RecipeError, listed

logger = logging.getLogger("plait")

SINGLE = "single_label_classification"
LEAST = 2
"""Rows that a task needs on each side."""


@dataclass(frozen=True)
class Split:
    """By task the rows to search on, where they come from, and those that are left to score the result on."""

    rows: Mapping[str, Examples] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    judged: Mapping[str, Examples] = field(default_factory=dict)


def tasks_of(sources: Sequence[Checkpoint], tasks: Mapping[str, str]) -> dict[str, list[Checkpoint]]:
    """Returns the sources of each task."""
    found: dict[str, list[Checkpoint]] = {}
    for source in sources:
        found.setdefault(tasks[source.name], []).append(source)
    return found


def split_rows(
    tasks: Mapping[str, Sequence[Checkpoint]],
    given: Mapping[str, Examples],
    data: Mapping[str, Examples],
    judged: Mapping[str, Examples],
    *,
    limit: int,
    seed: int,
) -> Split:
    """Returns the rows to search on: those given, else labelled data of the task's sources, else half of the judged.

    No row is on both sides: rows to search on that are judged as well are left out.

    Args:
        tasks: task -> its sources.
        given: task -> rows given for the search.
        data: source -> the rows that come with it.
        judged: task -> rows to score the result on.
        limit: rows of each task, a random subset.
        seed: of the subset and of the cut.

    Raises:
        RecipeError: tasks without a row to search on.
        DataError: too few rows.
    """
    headed = {task: sources for task, sources in tasks.items() if sources[0].kind != "body"}
    if not headed:
        raise RecipeError("--search needs heads to score by: the sources have none")
    found: dict[str, tuple[Examples, str, Examples | None]] = {}
    for task, sources in headed.items():
        rows = _of_task(task, sources, given, data, judged, seed)
        if rows is not None:
            found[task] = rows
    if missing := [task for task in headed if task not in found]:
        raise RecipeError(
            f"--search needs labelled rows of {listed(missing)} to search on: give --validation {missing[0]}=FILE, or "
            f"labels with --data {missing[0]}=FILE"
        )
    for task, (examples, origin, _) in found.items():
        logger.info("task %s is searched on %d rows: %s", task, min(limit, len(examples)), origin)
    return Split(
        {task: examples.sample(limit, seed) for task, (examples, _, _) in found.items()},
        {task: origin for task, (_, origin, _) in found.items()},
        {task: found[task][2] or rows if task in found else rows for task, rows in judged.items()},
    )


def _of_task(  # noqa: PLR0917 - all that rows of a task can come from
    task: str,
    sources: Sequence[Checkpoint],
    given: Mapping[str, Examples],
    data: Mapping[str, Examples],
    judged: Mapping[str, Examples],
    seed: int,
) -> tuple[Examples, str, Examples | None] | None:
    """Returns a task's rows to search on, where they come from, and what is left to judge where that was cut."""
    test = judged.get(task)
    if task in given:
        chosen = _apart(task, given[task], test)
        if len(chosen) < LEAST:
            raise DataError(
                f"task {task}: {len(chosen)} of {len(given[task])} validation rows are not evaluated on as well; "
                f"expected {LEAST} or more: give others, or leave --validation out to cut the evaluated ones in halves"
            )
        return chosen, f"given as validation data ({chosen.source})", None
    parts = [rows for source in sources if (rows := _labelled(data.get(source.name), source, sources[0])) is not None]
    joined = _apart(task, _joined(parts), test) if parts else None
    if joined is not None and len(joined) >= LEAST:
        return joined, f"labelled data of the sources ({joined.source})", None
    if test is None:
        return None
    return _cut(task, test, seed)


def _cut(task: str, test: Examples, seed: int) -> tuple[Examples, str, Examples]:
    left, searched = held_back(len(test), 0.5, seed)
    if min(len(left), len(searched)) < LEAST:
        raise DataError(
            f"task {task}: {len(test)} rows to evaluate on; expected {2 * LEAST} or more to cut into halves, one to "
            f"search on: give --validation {task}=FILE"
        )
    origin = f"half of those to evaluate on ({test.source}); the other {len(left)} are left to score the result on"
    return test.select(searched.tolist()), origin, test.select(left.tolist())


def _labelled(rows: Examples | None, source: Checkpoint, first: Checkpoint) -> Examples | None:
    """Returns a source's rows with labels as the first source of its task counts them; None where they have none."""
    if rows is None or rows.labels is None:
        return None
    told: dict[str, Any] = {"kind": source.kind, "problem_type": source.problem_type}
    try:
        own = align_labels(rows, source.labels, **told)
        if source.labels is None or source.labels == first.labels or source.problem_type != SINGLE:
            return own
        named = replace(own, labels=tuple(source.labels[label] for label in own.labels or ()), label_names=None)
        return align_labels(named, first.labels, **told)
    except DataError as problem:
        logger.info("not searched on: %s", problem)
        return None


def _joined(parts: Sequence[Examples]) -> Examples:
    """Returns data sets one after the other, cut to the length of the shortest so that all count alike."""
    if len(parts) == 1 or len({part.pairs is None for part in parts}) > 1:
        return parts[0]
    same = min(map(len, parts))
    every = [part.sample(same) for part in parts]
    return replace(
        every[0],
        texts=tuple(text for part in every for text in part.texts),
        pairs=None if every[0].pairs is None else tuple(text for part in every for text in part.pairs or ()),
        labels=tuple(label for part in every for label in part.labels or ()),
        source=", ".join(dict.fromkeys(part.source for part in every)),
    )


def _apart(task: str, rows: Examples, test: Examples | None) -> Examples:
    """Returns the rows whose texts are not judged."""
    if test is None:
        return rows
    known = set(_texts(test))
    kept = [at for at, text in enumerate(_texts(rows)) if text not in known]
    if 0 < len(kept) < len(rows):
        logger.warning(
            "task %s: %d of %d rows of %s are evaluated on as well and are not searched on",
            *(task, len(rows) - len(kept), len(rows), rows.source),
        )
    return rows.select(kept)


def _texts(rows: Examples) -> list[tuple[Any, Any]]:
    return list(zip(rows.texts, rows.pairs or (None,) * len(rows), strict=True))
