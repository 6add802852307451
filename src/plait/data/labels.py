"""Labels of the data to positions of the head: by name where both have names, else by index."""

from __future__ import annotations

import logging
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from plait.data.cells import Number
from plait.data.examples import ONE_ANSWER, Examples, Kind, ProblemType
from plait.errors import DataError, listed
from plait.label_names import numbered, placeholders

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

    Names map to the head's names (exactly, else whatever the casing, the spaces around them and the Unicode form).
    Indices map through the names that the data declares; where either side has none (`LABEL_0`, `0`, …) they are
    positions of the head. A number in a file without types is a name where the head has it as one. Regression wants
    numbers.

    Args:
        examples: Examples with or without labels (without, they come back as they are).
        labels: The head's label names in order; None for regression, question answering or an unknown head.
        kind: What the head is; the data's own kind by default.
        problem_type: What a sequence head is trained for; what the labels look like by default.

    Raises:
        DataError: When labels are missing or not the head's, naming the first of them.
    """
    if kind is not None and kind != examples.kind:
        raise DataError(
            f"{examples.source}: holds data for {_said(examples.kind)}; the head is for {_said(kind)}"
        )
    if examples.labels is None or examples.kind == "question_answering":
        return examples
    check_complete(examples)
    if examples.kind == "token_classification":
        return _aligned(examples, labels, flat=False)
    problem = problem_type or examples.problem_type
    if problem == "regression":
        return replace(examples, labels=_numbers(examples), label_names=None)
    if problem == "multi_label_classification":
        return _multi_hot(examples, labels)
    return _aligned(examples, labels, flat=True)


def check_complete(examples: Examples) -> None:
    """Raises `DataError` where some examples have no label."""
    rows = [i for i, label in enumerate(examples.labels or ()) if label is None]
    if rows:
        count = "1 example has" if len(rows) == 1 else f"{len(rows)} examples have"
        where = listed((f"example {i} ({_beginning(examples.texts[i])})" for i in rows), 5)
        raise DataError(f"{examples.source}: {count} no label: {where}; label them or leave them out")


def _beginning(text: Any) -> str:
    return f"{text if isinstance(text, str) else ' '.join(text)!r:.40}"


def names_in(examples: Examples, problem_type: ProblemType | None = None) -> tuple[str, ...] | None:
    """Returns a new head's label names: declared, else the sorted values, else None (numbers).

    Numbers from 0 are positions (`LABEL_0`, …); others, such as 1 to 5, are names. With `problem_type`, it decides
    whether numbers are classes, not whether they look like them.
    """
    if examples.label_names is not None:
        return examples.label_names
    problem = problem_type or examples.problem_type
    if examples.labels is None or problem == "regression" or examples.kind == "question_answering":
        return None
    if examples.problem_type == "multi_label_classification" and _is_multi_hot(examples, None):
        return tuple(f"LABEL_{i}" for i in range(len(_rows(examples)[0])))
    values = [v for v in _values(examples) if v is not None and v != IGNORED]
    if values and all(isinstance(v, bool) for v in values):
        return ("False", "True")
    if any(isinstance(v, str) for v in values):
        return _sorted(v if isinstance(v, str) else _written(v) for v in values)
    return _numbered(values)


def _numbered(values: Iterable[float]) -> tuple[str, ...]:
    """Returns the names of labels that are numbers."""
    numbers = {v for v in values if math.isfinite(v)}
    if any(v != int(v) for v in numbers):
        return _sorted(map(_written, numbers))
    count = int(max(numbers, default=-1)) + 1
    # Such as years: a head for all that lie between would teach nothing.
    sparse = count > max(FAR, 10 * len(numbers))
    if sparse or min(numbers, default=0) != 0:
        return tuple(str(int(v)) for v in sorted(numbers))
    return tuple(f"LABEL_{i}" for i in range(count))


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """Returns names in order: that of numbers where all are some."""
    every = list(dict.fromkeys(names))
    if all(_is_whole(name) for name in every):
        return tuple(sorted(every, key=lambda name: (int(name), name)))
    return tuple(sorted(every))


def _written(value: Any) -> str:
    """Returns a number as its file has it."""
    return value.text if isinstance(value, Number) else str(value)


def what_was_taken(examples: Examples, names: Sequence[str] | None) -> str | None:
    """Returns what a new head makes of labels that could mean something else, and how to say that they do.

    None where the data name their labels, so that there is nothing to decide.
    """
    values = [v for v in _values(examples) if v is not None]
    if examples.label_names is not None or examples.kind not in ONE_ANSWER:
        return None
    if examples.problem_type == "multi_label_classification":
        return f"labels are lists: several labels a text, of {_few(names or ())}"
    if not values or not all(isinstance(v, int | float) for v in values):
        return None
    if names is None:
        return (
            "labels are numbers with a fraction: a regression; for classes: "
            "problem_type (--problem-type) single_label_classification"
        )
    return (
        f"labels are whole numbers: {len(names)} classes ({_few(names)}); for a regression: "
        "problem_type (--problem-type) regression; to name the classes: labels (--labels)"
    )


def _few(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")


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
    if (odd := next((v for v in _values(examples) if isinstance(v, dict | list)), None)) is not None:
        raise DataError(f"{examples.source}: {str(odd)[:40]!r} is no label; expected a name or a number")
    values = set(_values(examples)) - ignored
    declared = examples.label_names or ()
    by_name = _by_name(examples.label_names, labels)
    said = {value: _name_of(value, declared) if by_name else value for value in values}
    head = _Names(labels)
    places = all(_place(name) is not None for name in said.values())
    found = {
        value: head.position(name, named=by_name or not declared, places=places) for value, name in said.items()
    }
    if unknown := sorted(str(said[value]) for value, at in found.items() if at is None):
        told = listed((repr(name) if name != name.strip() else name for name in unknown), 5)
        raise DataError(
            f"{examples.source}: labels {told} are not the head's; expected {_range(labels)}{_remedy(said, labels)}"
        )
    return {**dict.fromkeys(ignored, IGNORED), **{v: at for v, at in found.items() if at is not None}}


def _remedy(said: Mapping[Any, Any], labels: Sequence[str] | None) -> str:
    """Returns how a head without names is told them, where the data have names."""
    if labels is None or not placeholders(labels) or not any(isinstance(name, str) for name in said.values()):
        return ""
    return "; say what these stand for: labels (--labels NAME,NAME,…), in the head's order"


def _by_name(names: Sequence[str] | None, labels: Sequence[str] | None) -> bool:
    """Says whether the data's indices stand for names: both sides have real ones, or no room for indices."""
    if names is None or labels is None:
        return False
    return len(names) > len(labels) or not (placeholders(names) or placeholders(labels))


def _name_of(value: Any, names: Sequence[str]) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _place(value: Any) -> int | None:
    """Returns the place that a label without a name stands for: 1, 1.0, "1" or `LABEL_1`."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        bare = value.strip().upper().removeprefix("LABEL_") if numbered(value) else value.strip()
        return int(bare) if _is_whole(bare) and str(int(bare)) == bare else None
    return None


class _Names:
    """A head's names, to find labels among."""

    def __init__(self, labels: Sequence[str] | None) -> None:
        self.labels = labels
        self.exact = {name: at for at, name in enumerate(labels or ())}
        self.folded: dict[str, list[int]] = {}
        for at, name in enumerate(labels or ()):
            self.folded.setdefault(_folded(name), []).append(at)
        # LABEL_1 and LABEL_2 count from one: then 1 is the first.
        self.counted = labels is not None and all(map(numbered, labels))

    def position(self, value: Any, *, named: bool, places: bool) -> int | None:
        """Returns where a label is: by its name, else as a place where it may be one.

        Args:
            value: The label.
            named: Whether a number may be a name such as "10".
            places: Whether texts such as "1" may be places, because all labels of the data could.
        """
        if isinstance(value, str | bool) and (at := self._named(str(value))) is not None:
            return at
        if isinstance(value, str):
            return self._at(value) if places else None
        return self._number(value) if named or self.counted else self._at(value)

    def _number(self, value: Any) -> int | None:
        """Returns where a number is: that of a name if it is written as one, or names its place by another."""
        place, written = _place(value), _written(value)
        if written in self.exact:
            return self.exact[written]
        if place is None or self.labels is None:
            return self._at(value)
        taken = 0 <= place < len(self.labels) and _is_whole(self.labels[place])
        return self.exact.get(str(place)) if taken or str(place) in self.exact else self._at(value)

    def _named(self, name: str) -> int | None:
        if name in self.exact:
            return self.exact[name]
        found = self.folded.get(_folded(name), [])
        return found[0] if len(found) == 1 else None

    def _at(self, value: Any) -> int | None:
        place = _place(value)
        if place is not None and self.counted:
            return self._named(f"LABEL_{place}")
        return place if place is not None and place >= 0 and self._has(place) else None

    def _has(self, place: int) -> bool:
        return self.labels is None or place < len(self.labels)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _numbers(examples: Examples) -> tuple[float, ...]:
    numbers, bad = [], []
    for row, value in enumerate(examples.labels or ()):
        number = _number(value)
        if math.isfinite(number):
            numbers.append(number)
        else:
            bad.append(f"row {row} ({value!r})")
    if bad:
        raise DataError(
            f"{examples.source}: a regression head needs finite numbers; found others in {listed(bad, 5)}"
        )
    return tuple(numbers)


def _number(value: Any) -> float:
    """Returns a number, or NaN for what is none."""
    try:
        return float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        return math.nan


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
    return f"0 to {len(labels) - 1}" + ("" if placeholders(labels) else f" or {', '.join(labels[:20])}")


def _said(kind: str) -> str:
    return kind.replace("_", " ")
