"""Which column is the text, which the label: the names in use, and errors that say what was found instead."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.data.examples import Examples, Kind
from plait.errors import DataError, did_you_mean, listed

logger = logging.getLogger("plait")

TEXT = (
    "text",
    "sentence",
    "content",
    "review",
    "document",
    "query",
    "question",
    "text1",
    "sentence1",
    "sentence_a",
    "premise",
    "question1",
    "document1",
)
PAIRS = (
    ("text", "text_pair"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "answer"),
    ("query", "passage"),
    ("query", "document"),
    ("document1", "document2"),
)
LABEL = ("label", "labels", "class", "target", "category", "score", "sentiment", "stars")
WORDS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "pos_tags", "chunk_tags", "labels")
UNLABELLED = -1


@dataclass(frozen=True)
class Table:
    """Columns of equal length, the label names that each column declares, and where they came from."""

    columns: Mapping[str, Sequence[Any]]
    names: Mapping[str, tuple[str, ...]]
    source: str


@dataclass(frozen=True)
class Wanted:
    """Column names that the user gave; None means: find it."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


def examples_from(table: Table, wanted: Wanted) -> Examples:
    """Returns the examples of a table, its columns recognised by name unless they are given.

    Raises:
        DataError: When there are no rows, a column is missing, or rows lack a text.
    """
    check_given(table, wanted)
    if not table.columns or not len(next(iter(table.columns.values()))):
        raise DataError(f"{table.source}: no examples; expected at least one row with a text")
    if wanted.text is None and (words := first_of(table, WORDS)) is not None:
        return _tagged(table, words, wanted)
    if wanted.text is None and _asks(table, wanted):
        return _questions(table)
    return _texts(table, wanted)


def _asks(table: Table, wanted: Wanted) -> bool:
    """Says whether questions are to be answered from their contexts, rather than the two to be classified."""
    labelled = wanted.label or first_of(table, LABEL)
    return {"question", "context"} <= set(table.columns) and ("answers" in table.columns or not labelled)


def _texts(table: Table, wanted: Wanted) -> Examples:
    text, pair = (wanted.text, wanted.text_pair) if wanted.text else text_columns(table, wanted)
    label = wanted.label or first_of(table, LABEL, but=text)
    given = {wanted.text, wanted.text_pair, wanted.label}
    say(table, {"text": text, "text_pair": pair, "label": label}, given)
    return Examples(
        _strings(table, text),
        _strings(table, pair) if pair else None,
        _labels(table, label) if label else None,
        table.names.get(label) if label else None,
        "sequence_classification",
        table.source,
    )


def say(table: Table, taken: Mapping[str, str | None], given: Collection[str | None]) -> None:
    """Logs which columns were taken, where that follows neither from their names nor from what the user gave."""
    found = {role: name for role, name in taken.items() if name is not None}
    if any(name != role and name not in given for role, name in found.items()):
        logger.info("%s: %s", table.source, ", ".join(f"{role}={name}" for role, name in found.items()))


def text_columns(table: Table, wanted: Wanted) -> tuple[str, str | None]:
    """Returns the text's column and its pair's, if every text in the table has a place in one of the two."""
    found = _with_text(table, but=(wanted.text_pair, wanted.label))
    if not any(name in TEXT for name in found):
        raise DataError(
            f"{table.source}: no text column; found columns {_found(table)}; "
            f"expected one of {', '.join(TEXT)}; or say which one it is (text, --text-column)"
        )
    if wanted.text_pair is not None:
        partners = [first for first, second in PAIRS if second == wanted.text_pair.lower() and first in found]
        if len(chosen := partners or list(found)) == 1:
            return found[chosen[0]], wanted.text_pair
    elif len(found) == 1:
        return next(iter(found.values())), None
    elif pair := next((pair for pair in PAIRS if set(pair) == set(found)), None):
        return found[pair[0]], found[pair[1]]
    raise DataError(
        f"{table.source}: several columns with text ({', '.join(found.values())}); say which to read: "
        "text (--text-column), and text_pair (--text-pair-column) for a second text"
    )


def _with_text(table: Table, but: Sequence[str | None]) -> dict[str, str]:
    """Returns the columns with the usual names of texts, by lower-case name: those that hold texts, if any do."""
    known = {*TEXT, *(name for pair in PAIRS for name in pair)}
    named = {
        column.lower(): column for column in table.columns if column.lower() in known and column not in but
    }
    full = {
        low: column
        for low, column in named.items()
        if any(isinstance(value, str) for value in table.columns[column])
    }
    return full or named


def _tagged(table: Table, words: str, wanted: Wanted) -> Examples:
    texts = tuple(tuple(row) if row is not None else () for row in table.columns[words])
    bad = [f"row {i}" for i, row in enumerate(texts) if not row or not all(isinstance(w, str) for w in row)]
    if bad:
        raise DataError(f"{table.source}: column {words!r} needs a non-empty list of words in {listed(bad)}")
    tags = wanted.label or first_of(table, TAGS)
    say(table, {"tokens": words, "tags": tags}, {wanted.label})
    labels = _tags(table, tags) if tags else None
    if labels is not None:
        pairs = zip(texts, labels, strict=True)
        uneven = [
            f"row {i} ({len(t)} words, {len(y)} tags)" for i, (t, y) in enumerate(pairs) if len(t) != len(y)
        ]
        if uneven:
            raise DataError(f"{table.source}: words and tags differ in number in {listed(uneven)}")
    return Examples(texts, None, labels, table.names.get(tags or ""), "token_classification", table.source)


def _tags(table: Table, column: str) -> tuple[tuple[Any, ...], ...]:
    rows = tuple(as_label(row) for row in table.columns[column])
    if bad := [f"row {i} ({shown(row)})" for i, row in enumerate(rows) if not isinstance(row, tuple)]:
        raise DataError(f"{table.source}: column {column!r} needs a list of labels in {listed(bad, 5)}")
    return rows


def _questions(table: Table) -> Examples:
    kind: Kind = "question_answering"
    questions, contexts = _strings(table, "question"), _strings(table, "context")
    if "answers" not in table.columns:
        return Examples(questions, contexts, None, None, kind, table.source)
    answers = tuple(_answers(row, i, table.source) for i, row in enumerate(table.columns["answers"]))
    return Examples(questions, contexts, answers, None, kind, table.source)


def _answers(row: Any, index: int, source: str) -> tuple[tuple[str, int], ...]:
    """Returns one row's answers as (text, first character), from either layout that SQuAD files come in."""
    try:
        if isinstance(row, Mapping):
            return tuple(zip(map(str, row["text"]), map(int, row["answer_start"]), strict=True))
        return tuple((str(one["text"]), int(one["answer_start"])) for one in row or ())
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{source}: row {index} of column 'answers' is {row!r:.80}; "
            "expected text and answer_start, lists of one length"
        ) from error


def _strings(table: Table, column: str) -> tuple[str, ...]:
    values = table.columns[column]
    bad = [f"row {i} ({shown(v)})" for i, v in enumerate(values) if not isinstance(v, str)]
    if bad:
        raise DataError(
            f"{table.source}: column {column!r} must hold text; found something else in {listed(bad, 5)}"
        )
    return tuple(map(str, values))


def _labels(table: Table, column: str) -> tuple[Any, ...] | None:
    """Returns the labels, or None where no row has one (missing, or -1 as in published test splits)."""
    named = column in table.names
    values = [as_label(value) for value in table.columns[column]]
    empty = [value is None or (named and value == UNLABELLED) for value in values]
    if all(empty):
        return None
    if any(empty):
        rows = [str(i) for i, missing in enumerate(empty) if missing]
        raise DataError(
            f"{table.source}: column {column!r} has no label in {counted(len(rows), 'row')} "
            f"({'row' if len(rows) == 1 else 'rows'} {listed(rows, 5)}); "
            "label them or leave them out"
        )
    return tuple(values)


def as_label(value: Any) -> Any:
    """Returns a label as a plain Python value."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool):
        return int(value)
    if _is_nan(value):
        return None
    return tuple(as_label(v) for v in value) if isinstance(value, list | tuple) else value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def first_of(table: Table, names: Sequence[str], but: str | None = None) -> str | None:
    """Returns the first column named like one of `names`, whatever its casing."""
    lower = {column.lower(): column for column in table.columns if column != but}
    return next((lower[name] for name in names if name in lower), None)


def check_given(table: Table, wanted: Wanted) -> None:
    """Raises `DataError` for a column that was named and is not there."""
    given = {"text": wanted.text, "text_pair": wanted.text_pair, "label": wanted.label}
    missing = [
        f"{role}={name!r}" for role, name in given.items() if name is not None and name not in table.columns
    ]
    if missing:
        first = next(name for name in given.values() if name is not None and name not in table.columns)
        raise DataError(f"{table.source}: no column {', '.join(missing)}{did_you_mean(first, table.columns)}")


def counted(number: int, thing: str) -> str:
    """Returns a number of things in words, such as `1 row` or `2 rows`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _found(table: Table) -> str:
    return ", ".join(map(str, table.columns)) or "none"


def shown(value: Any) -> str:
    """Returns a value for a message: its type and its beginning."""
    return "missing" if value is None or _is_nan(value) else f"{type(value).__name__} {value!r:.40}"
