"""Tasks and their heads: labels of one task are matched by name or refused, never averaged by position alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from plait.checkpoints.source import Checkpoint
from plait.errors import RecipeError, did_you_mean, listed
from plait.label_names import placeholders

ALIKE = 0.9
"""Cosine above which rows of two heads began as one: those of heads drawn apart are near 0."""
Rows = tuple[int, ...] | None


def group_tasks(sources: Sequence[Checkpoint], tasks: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Returns the indices of each task's sources; a source without a named task is a task of its own name."""
    names = [source.name for source in sources]
    strangers = [name for name in tasks if name not in names]
    if strangers:
        raise RecipeError(listed(f"task for unknown source {n!r}{did_you_mean(n, names)}" for n in strangers))
    chosen = [tasks.get(name, name) for name in names]
    return {
        task: tuple(i for i, found in enumerate(chosen) if found == task) for task in dict.fromkeys(chosen)
    }


def label_rows(
    sources: Sequence[Checkpoint], tasks: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Rows], list[str]]:
    """Returns by source the rows that put its labels in its task's order, and what keeps heads from being merged."""
    rows: dict[str, Rows] = {}
    problems: list[str] = []
    for task, members in tasks.items():
        first, *others = (sources[i] for i in members)
        rows[first.name] = None
        for other in others:
            found = _head_differences(first, other)
            problems += [f"task {task}: {problem}" for problem in found]
            rows[other.name] = None if found else _permutation(first.labels, other.labels)
    return rows, problems


def _permutation(wanted: tuple[str, ...] | None, given: tuple[str, ...] | None) -> Rows:
    """Returns where each wanted label is among those given, None if every one is in its place."""
    if wanted is None or given is None or wanted == given:
        return None
    return tuple(given.index(label) for label in wanted)


def _head_differences(first: Checkpoint, other: Checkpoint) -> list[str]:
    facts = (("head", first.kind, other.kind), ("problem_type", first.problem_type, other.problem_type))
    unlike = [
        f"{what} differs ({first.name}: {mine}, {other.name}: {theirs}); give them tasks of their own"
        for what, mine, theirs in facts
        if mine != theirs
    ]
    return unlike or _label_differences(first, other) or _head_shapes(first, other)


def _label_differences(first: Checkpoint, other: Checkpoint) -> list[str]:
    mine, theirs = first.labels or (), other.labels or ()
    if set(mine) == set(theirs):
        return unproved_order(first, other)
    names = f"{first.name}: {', '.join(mine)}; {other.name}: {', '.join(theirs)}"
    if len(mine) == len(theirs) and placeholders(mine) != placeholders(theirs):
        return [f"labels have no common names ({names}); say the real ones with labels (--labels)"]
    return [f"labels differ ({names}); give them tasks of their own, or make the names agree with labels (--labels)"]


def unproved_order(first: Checkpoint, other: Checkpoint) -> list[str]:
    """Returns why two heads whose labels are placeholders may mean different things by one row.

    Placeholders prove nothing. Heads that began as one do: their rows are still alike.
    """
    mine, theirs = first.labels or (), other.labels or ()
    if not mine or not placeholders(mine) or not placeholders(theirs) or _rows_alike(first, other):
        return []
    return [
        f"{first.name} and {other.name} both call their labels {', '.join(mine)}, which does not say that they have "
        f"them in one order; say it by --labels {first.name}=…,… --labels {other.name}=…,… (or write the "
        "names into id2label)"
    ]


def _rows_alike(first: Checkpoint, other: Checkpoint) -> bool:
    """Says whether each row of one head is nearly parallel to that of the other, as after one initialisation."""
    if first.head.keys() != other.head.keys() or first.label_parameters != other.label_parameters:
        return False
    names = [name for name in first.label_parameters if len(first.header(first.head[name]).shape) == 2]
    for name in names:
        a, b = (c.read(c.head[name]).double() for c in (first, other))
        if a.shape != b.shape or bool((torch.cosine_similarity(a, b) < ALIKE).any()):
            return False
    return bool(names)


def _head_shapes(first: Checkpoint, other: Checkpoint) -> list[str]:
    mine, theirs = ({k: list(c.header(v).shape) for k, v in c.head.items()} for c in (first, other))
    differing = [name for name in dict.fromkeys((*mine, *theirs)) if mine.get(name) != theirs.get(name)]
    return [
        f"head parameter {name} differs ({first.name}: {mine.get(name)}, {other.name}: {theirs.get(name)})"
        for name in differing
    ]
