"""Which column is the text, which the label: the names in use, and errors that say what was found instead."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plait.data.cells import Reader, label_reader, missing, words_of
from plait.data.examples import Examples, Kind
from plait.data.pictures import picture
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
IMAGES = ("image", "img", "picture", "photo", "file_name", "filename", "image_path", "image_file", "path", "file")
WORDS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "pos_tags", "chunk_tags", "labels")
KNOWN = frozenset({*TEXT, *(name for pair in PAIRS for name in pair), *LABEL, *WORDS, *TAGS, "answers"})
UNLABELLED = -1


@dataclass(frozen=True)
class Table:
    """Columns of equal length, the label names that each column declares, and where they came from.

    `untyped` says that every value is a text, whatever it stands for: so it is in CSV and TSV.
    """

    columns: Mapping[str, Sequence[Any]]
    names: Mapping[str, tuple[str, ...]]
    source: str
    untyped: bool = False


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
    return replace(_examples(table, wanted), columns=tuple(map(str, table.columns)))


def _examples(table: Table, wanted: Wanted) -> Examples:
    check_given(table, wanted)
    if not table.columns or not len(next(iter(table.columns.values()))):
        raise DataError(f"{table.source}: no examples; expected at least one row with a text")
    if (column := image_column(table, wanted)) is not None:
        return _images(table, column, wanted)
    if wanted.text is None and (words := first_of(table, WORDS)) is not None:
        return _tagged(table, words, wanted)
    if wanted.text is None and _asks(table, wanted):
        return _questions(table)
    return _texts(table, wanted)


def image_column(table: Table, wanted: Wanted) -> str | None:
    """Returns the column of images, if a table is about them: the one that is named, else one of the usual names.

    A table of texts stays one, whatever files it names beside them.
    """
    if wanted.text is not None:
        return wanted.text if _holds_images(table, wanted.text) else None
    if first_of(table, (*TEXT, *WORDS)) is not None:
        return None
    found = first_of(table, IMAGES)
    return found if found is not None and _holds_images(table, found) else None


def _holds_images(table: Table, column: str) -> bool:
    values = [value for value in table.columns[column] if not missing(value)]
    return bool(values) and picture(values[0]) is not None


def _images(table: Table, column: str, wanted: Wanted) -> Examples:
    """Returns images with their labels; names of files begin where the file that lists them lies."""
    label = wanted.label or first_of(table, LABEL, but=column)
    say(table, {"image": column, "label": label}, {wanted.text, wanted.label})
    here = Path(table.source)
    folder = here.parent if here.is_file() else here if here.is_dir() else None
    table = _without(table, [not missing(value) for value in table.columns[column]], [column])
    pictures = [picture(value, folder) for value in table.columns[column]]
    rows = [
        f"row {i} ({shown(table.columns[column][i])})"
        for i, one in enumerate(pictures)
        if one is None or (isinstance(one.source, Path) and not one.source.is_file())
    ]
    if rows:
        raise DataError(f"{table.source}: column {column!r} names images that are not there: {listed(rows, 5)}")
    labels = _labels(table, label) if label else None
    names = table.names.get(label) if label else None
    return Examples(tuple(pictures), None, labels, names, "image_classification", table.source)


def _asks(table: Table, wanted: Wanted) -> bool:
    """Says whether questions are to be answered from their contexts, rather than the two to be classified."""
    labelled = wanted.label or first_of(table, LABEL)
    return {"question", "context"} <= set(table.columns) and ("answers" in table.columns or not labelled)


def _texts(table: Table, wanted: Wanted) -> Examples:
    text, pair = (wanted.text, wanted.text_pair) if wanted.text else text_columns(table, wanted)
    label = wanted.label or first_of(table, LABEL, but=text)
    given = {wanted.text, wanted.text_pair, wanted.label}
    say(table, {"text": text, "text_pair": pair, "label": label}, given)
    table = with_texts(table, [name for name in (text, pair) if name is not None])
    return Examples(
        tuple(table.columns[text]),
        tuple(table.columns[pair]) if pair else None,
        _labels(table, label) if label else None,
        table.names.get(label) if label else None,
        "sequence_classification",
        table.source,
    )


def with_texts(table: Table, names: Sequence[str]) -> Table:
    """Returns a table without the rows in which a text is missing or blank; says how many.

    Raises:
        DataError: When a row holds something else than text, or there is no text at all.
    """
    texts = {name: checked(table, name) for name in names}
    return _without(table, [all(row) for row in zip(*texts.values(), strict=True)], names)


def _without(table: Table, kept: Sequence[bool], names: Sequence[str]) -> Table:
    if all(kept):
        return table
    if not any(kept):
        raise DataError(none_left(table.source, len(kept), names))
    say_skipped(table.source, len(kept) - sum(kept), len(kept))
    columns = {
        name: [value for value, keep in zip(values, kept, strict=True) if keep]
        for name, values in table.columns.items()
    }
    return replace(table, columns=columns)


def none_left(source: str, rows: int, names: Sequence[str]) -> str:
    """Returns the error of data in which no row has its texts."""
    where = f"column{'' if len(names) == 1 else 's'} {' and '.join(map(repr, names))}"
    return f"{source}: no text in {counted(rows, 'row')}; expected at least one text in {where}"


def say_skipped(source: str, skipped: int, rows: int) -> None:
    """Warns of rows that are left out for want of a text."""
    logger.warning("%s: %s of %d without a text, skipped", source, counted(skipped, "row"), rows)


def checked(table: Table, column: str, before: int = 0) -> list[str | None]:
    """Returns a column of texts, None for those that are missing or blank; `before` is the number of rows before it.

    Raises:
        DataError: When there is something else.
    """
    values = table.columns[column]
    bad = [
        f"row {before + row} ({shown(value)})"
        for row, value in enumerate(values)
        if not isinstance(value, str) and not missing(value)
    ]
    if bad:
        raise DataError(
            f"{table.source}: column {column!r} must hold text; found something else in {listed(bad, 5)}"
        )
    return [None if missing(value) else str(value) for value in values]


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
    tags = wanted.label or first_of(table, TAGS)
    say(table, {"tokens": words, "tags": tags}, {wanted.label})
    lists = {name: words_of(table.columns[name]) for name in (words, tags) if name is not None}
    table = replace(table, columns={**table.columns, **lists})
    table = _without(table, [row is not None and row != () for row in lists[words]], [words])
    texts = tuple(table.columns[words])
    bad = [
        f"row {i} ({shown(row)})"
        for i, row in enumerate(texts)
        if not isinstance(row, tuple) or not all(isinstance(w, str) for w in row)
    ]
    if bad:
        raise DataError(f"{table.source}: column {words!r} needs a list of words in {listed(bad, 5)}")
    labels = _tags(table, tags) if tags else None
    if labels is not None:
        pairs = zip(texts, labels, strict=True)
        uneven = [
            f"row {i} ({len(t)} words, {len(y)} tags)"
            for i, (t, y) in enumerate(pairs)
            if y is not None and len(t) != len(y)
        ]
        if uneven:
            raise DataError(f"{table.source}: words and tags differ in number in {listed(uneven)}")
    return Examples(texts, None, labels, table.names.get(tags or ""), "token_classification", table.source)


def _tags(table: Table, column: str) -> tuple[Any, ...] | None:
    rows = tuple(table.columns[column])
    if bad := [
        f"row {i} ({shown(row)})" for i, row in enumerate(rows) if not isinstance(row, tuple | None)
    ]:
        raise DataError(f"{table.source}: column {column!r} needs a list of labels in {listed(bad, 5)}")
    return None if all(row is None for row in rows) else rows


def _questions(table: Table) -> Examples:
    kind: Kind = "question_answering"
    table = with_texts(table, ["question", "context"])
    questions, contexts = tuple(table.columns["question"]), tuple(table.columns["context"])
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


def _labels(table: Table, column: str) -> tuple[Any, ...] | None:
    """Returns the labels, None for a row without one; None where no row has one, as in published test splits."""
    read = label_of(table.columns[column], untyped=table.untyped, named=column in table.names)
    values = tuple(map(read, table.columns[column]))
    return None if all(value is None for value in values) else values


def label_of(values: Iterable[Any], *, untyped: bool, named: bool) -> Reader:
    """Returns what gives a column's labels; where the column names them, -1 stands for none."""
    read = label_reader(values, untyped=untyped)
    if not named:
        return read

    def declared(value: Any) -> Any:
        label = read(value)
        return None if label == UNLABELLED else label

    return declared


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
    return "missing" if missing(value) else f"{type(value).__name__} {value!r:.40}"
