"""Labels of the data to positions of the head: by name where both have names, else by index."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from plait.data.examples import Examples, Kind, ProblemType
from plait.errors import DataError, listed

logger = logging.getLogger("plait")

IGNORED = -100
FAR = 1000
"""Positions that a new head may have for few labels in the data."""


def align_labels(
    examples: Examples,
    labels: Sequence[str] | None,
    *,
    kind: Kind | None = None,
    problem_type: ProblemType | None = None,
) -> Examples:
    """Returns the examples with labels as the head counts them.

    Names map to the head's names (exactly, else whatever the casing). Indices map through the names that
    the data declares; where either side has none (`LABEL_0`, …) they are positions of the head. Regression
    wants numbers.

    Args:
        examples: Examples with or without labels (without, they come back as they are).
        labels: The head's label names in order; None for regression, question answering or an unknown head.
        kind: What the head is; the data's own kind by default.
        problem_type: What a sequence head is trained for; what the labels look like by default.

    Raises:
        DataError: When labels are not the head's, naming the first of them.
    """
    if kind is not None and kind != examples.kind:
        raise DataError(
            f"{examples.source}: holds data for {_said(examples.kind)}; the head is for {_said(kind)}"
        )
    if examples.labels is None or examples.kind == "question_answering":
        return examples
    if examples.kind == "token_classification":
        return _aligned(examples, labels, flat=False)
    problem = problem_type or examples.problem_type
    if problem == "regression":
        return replace(examples, labels=_numbers(examples), label_names=None)
    if problem == "multi_label_classification":
        return _multi_hot(examples, labels)
    return _aligned(examples, labels, flat=True)


def names_in(examples: Examples, problem_type: ProblemType | None = None) -> tuple[str, ...] | None:
    """Returns a new head's label names: declared, else the sorted values, else None (numbers).

    With `problem_type`, it decides whether numbers are classes, not whether they look like them.
    """
    if examples.label_names is not None:
        return examples.label_names
    if (
        examples.labels is None
        or (problem_type or examples.problem_type) == "regression"
        or examples.kind == "question_answering"
    ):
        return None
    values = {v for v in _values(examples) if v != IGNORED}
    if all(isinstance(v, str) for v in values):
        whole = all(_is_whole(v) for v in values)
        return tuple(sorted(values, key=lambda v: (int(v), v) if whole else (0, v)))
    several = examples.problem_type == "multi_label_classification"
    if several and _is_multi_hot(examples, None):
        count = len(_rows(examples)[0])
    else:
        numbers = {int(v) for v in values if isinstance(v, int | float) and math.isfinite(v)}
        count = max(numbers, default=-1) + 1
        if count > max(
            FAR, 10 * len(numbers)
        ):  # such as years: a head for all that lie between would teach nothing
            return tuple(map(str, sorted(numbers)))
    return tuple(f"LABEL_{i}" for i in range(count))


def generic(labels: Sequence[str] | None) -> bool:
    """Says whether a head's names are the placeholders that transformers writes when nobody gave any."""
    return labels is None or all(name.upper() == f"LABEL_{i}" for i, name in enumerate(labels))


def _aligned(examples: Examples, labels: Sequence[str] | None, *, flat: bool) -> Examples:
    _check_rows(examples, flat=flat)
    table = _translation(examples, labels)
    rows = examples.labels or ()
    moved = tuple(table[v] for v in rows) if flat else tuple(tuple(table[v] for v in row) for row in rows)
    return replace(examples, labels=moved, label_names=None if labels is None else tuple(labels))


def _check_rows(examples: Examples, *, flat: bool) -> None:
    rows = enumerate(examples.labels or ())
    if bad := [f"row {i} ({row!r:.40})" for i, row in rows if isinstance(row, tuple) is flat]:
        wanted = "text; found several" if flat else "word; found others"
        raise DataError(f"{examples.source}: the head needs one label a {wanted} in {listed(bad, 5)}")


def _multi_hot(examples: Examples, labels: Sequence[str] | None) -> Examples:
    """Returns rows of 0.0 and 1.0, from such rows, or from lists of names or indices."""
    if not any(isinstance(row, tuple) for row in examples.labels or ()):
        logger.info("%s: one label per text for a multi-label head", examples.source)
    if _is_multi_hot(examples, labels):
        rows = tuple(tuple(float(v) for v in row) for row in _rows(examples))
        return replace(examples, labels=rows, label_names=None if labels is None else tuple(labels))
    table = _translation(examples, labels)
    size = len(labels) if labels is not None else max(table.values(), default=-1) + 1
    sets = ({table[v] for v in row} for row in _rows(examples))
    rows = tuple(tuple(float(i in chosen) for i in range(size)) for chosen in sets)
    return replace(examples, labels=rows, label_names=None if labels is None else tuple(labels))


def _is_multi_hot(examples: Examples, labels: Sequence[str] | None) -> bool:
    """Says whether every row is zeros and ones, one for each label, rather than a list of labels."""
    rows = _rows(examples)
    size = len(labels) if labels is not None else len(rows[0])
    return all(len(row) == size and set(row) <= {0, 1} for row in rows)


def _translation(examples: Examples, labels: Sequence[str] | None) -> dict[Any, int]:
    """Returns every value in the data with its position in the head.

    Raises:
        DataError: Naming the values that have none, and the head's range.
    """
    ignored = {IGNORED} if examples.kind == "token_classification" else set()
    said = {value: value for value in set(_values(examples)) - ignored}
    if _by_name(examples.label_names, labels):
        said = {value: _name_of(value, examples.label_names or ()) for value in said}
    exact = {name: at for at, name in enumerate(labels or ())}
    if examples.label_names is None:
        said = {value: _called(value, labels or (), exact) for value in said}
    found = {value: _position(name, labels, exact) for value, name in said.items()}
    if unknown := sorted(str(said[value]) for value, at in found.items() if at is None):
        raise DataError(
            f"{examples.source}: labels {listed(unknown, 5)} are not the head's; expected {_range(labels)}"
        )
    return {**dict.fromkeys(ignored, IGNORED), **{v: at for v, at in found.items() if at is not None}}


def _by_name(names: Sequence[str] | None, labels: Sequence[str] | None) -> bool:
    """Says whether the data's indices stand for names: both sides have real ones, or no room for indices."""
    if names is None or labels is None:
        return False
    return len(names) > len(labels) or not (generic(names) or generic(labels))


def _name_of(value: Any, names: Sequence[str]) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _called(value: Any, labels: Sequence[str], exact: Mapping[str, int]) -> Any:
    """Returns a number as a name where the head has it as one, such as "10", or names its position by another."""
    if not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        return value
    taken = 0 <= value < len(labels) and _is_whole(labels[int(value)])
    return str(int(value)) if taken or str(int(value)) in exact else value


def _position(value: Any, labels: Sequence[str] | None, exact: Mapping[str, int]) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return value if value >= 0 and (labels is None or value < len(labels)) else None
    if labels is None:
        return None
    if value in exact:
        return exact[value]
    folded = [i for i, name in enumerate(labels) if name.casefold() == str(value).casefold()]
    return folded[0] if len(folded) == 1 else None


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _numbers(examples: Examples) -> tuple[float, ...]:
    numbers, bad = [], []
    for row, value in enumerate(examples.labels or ()):
        if isinstance(value, int | float) and math.isfinite(value):
            numbers.append(float(value))
        else:
            bad.append(f"row {row} ({value!r})")
    if bad:
        raise DataError(
            f"{examples.source}: a regression head needs finite numbers; found others in {listed(bad, 5)}"
        )
    return tuple(numbers)


def _rows(examples: Examples) -> tuple[tuple[Any, ...], ...]:
    rows = examples.labels or ()
    return tuple(row if isinstance(row, tuple) else (row,) for row in rows)


def _values(examples: Examples) -> Iterable[Any]:
    return (value for row in _rows(examples) for value in row)


def _range(labels: Sequence[str] | None) -> str:
    if labels is None:
        return "whole numbers from 0"
    if any(_is_whole(name) for name in labels):
        return ", ".join(labels[:20])
    return f"0 to {len(labels) - 1}" + ("" if generic(labels) else f" or {', '.join(labels[:20])}")


def _said(kind: str) -> str:
    return kind.replace("_", " ")
