"""Texts read chunk by chunk, as often as wanted: memory does not grow with the size of the file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plait.data.columns import (
    LABEL,
    UNLABELLED,
    Table,
    Wanted,
    as_label,
    check_given,
    counted,
    first_of,
    say,
    shown,
    text_columns,
)
from plait.data.examples import Examples
from plait.data.files import STREAMS, Feed, stream
from plait.data.reading import table_of
from plait.errors import DataError, did_you_mean, listed

logger = logging.getLogger("plait")

CHUNK = 4096
"""Texts in a chunk."""


@dataclass(frozen=True)
class Columns:
    """Which columns are read; `numbers` is what a label column of a file without types holds throughout."""

    text: str
    text_pair: str | None
    label: str | None
    label_names: tuple[str, ...] | None
    numbers: Callable[[str], Any] | None = None

    @property
    def wanted(self) -> list[str]:
        """Returns the names of the columns that are read."""
        return [name for name in (self.text, self.text_pair, self.label) if name is not None]


@dataclass(eq=False)
class Texts:
    """Texts (perhaps pairs, perhaps labels) that can be gone through again and again without being held.

    Rows without a text, or without the second one of a pair, are left out and counted.

    Attributes:
        source: Where they are read from, for messages.
        chunk: How many texts a chunk has.
    """

    source: str
    chunk: int
    _feed: Feed = field(repr=False)
    _columns: Columns = field(repr=False)
    _seen: tuple[int, int] | None = field(default=None, repr=False)

    def chunks(self, size: int | None = None) -> Iterator[Examples]:
        """Yields the texts in order, `size` (by default `chunk`) at a time; the last chunk may be smaller.

        Raises:
            DataError: When there is no text at all, or a row holds something else than text.
        """
        size = size or self.chunk
        kept = read = 0
        waiting: list[tuple[Any, ...]] = []
        for table in self._feed(self._columns.wanted):
            rows = self._rows(table, read)
            read += len(table.columns[self._columns.text])
            kept += len(rows)
            waiting += rows
            while len(waiting) >= size:
                yield self._examples(waiting[:size])
                del waiting[:size]
        if waiting:
            yield self._examples(waiting)
        self._finish(kept, read)

    def count(self) -> int:
        """Returns the number of texts: one cheap pass, made once."""
        return self._pass()[0]

    @property
    def skipped(self) -> int:
        """Returns how many rows are left out for want of a text."""
        return self._pass()[1]

    def _pass(self) -> tuple[int, int]:
        if self._seen is None:
            for _ in self.chunks():
                pass
        assert self._seen is not None
        return self._seen

    def _finish(self, kept: int, read: int) -> None:
        if not kept:
            raise DataError(
                f"{self.source}: no text in {counted(read, 'row')}; expected at least one text in column "
                f"{self._columns.text!r}"
            )
        if self._seen is None and kept < read:
            lines = counted(read - kept, "row")
            logger.warning("%s: %s of %d without a text, skipped", self.source, lines, read)
        self._seen = kept, read - kept

    def _rows(self, table: Table, before: int) -> list[tuple[Any, ...]]:
        """Returns the rows with a text as tuples (text, pair, label)."""
        columns = self._columns
        texts = _checked(table, columns.text, before)
        nothing: list[None] = [None] * len(texts)
        pairs = _checked(table, columns.text_pair, before) if columns.text_pair else nothing
        labels = table.columns[columns.label] if columns.label else nothing
        paired = columns.text_pair is not None
        return [
            row for row in zip(texts, pairs, labels, strict=True) if row[0] and (row[1] or not paired)
        ]  # fmt: skip

    def _examples(self, rows: Sequence[tuple[Any, ...]]) -> Examples:
        texts, pairs, labels = zip(*rows, strict=True)
        columns = self._columns
        return Examples(
            texts,
            pairs if columns.text_pair else None,
            tuple(_value(label, columns) for label in labels) if columns.label else None,
            columns.label_names,
            "sequence_classification",
            self.source,
        )


def open_texts(
    data: Any,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    split: str | None = None,
    label: str | None = None,
    chunk: int = CHUNK,
) -> Texts:
    """Returns the texts of `data`, to be gone through chunk by chunk as often as wanted.

    A txt, jsonl, csv, tsv or parquet file is read in bounded memory; whatever else `read_examples` takes is held and
    sliced.

    Args:
        data: What `read_examples` takes.
        text: Name of the text column; it and its pair are found by themselves where they have usual names.
        text_pair: Name of the second text column; without it, a named text stands alone.
        split: Which split, where there are several.
        label: Name of the label column, which is read only when it is named; a row without a label has None.
        chunk: How many texts come at a time.

    Raises:
        DataError: When there is no file, no column of texts, or no text.
    """
    if isinstance(data, Mapping) and isinstance(data.get("path"), str | Path):
        given = {"split": split, "text": text, "text_pair": text_pair, "label": label}
        told = {**data, **{name: value for name, value in given.items() if value is not None}}
        return _open_described(told, chunk)
    if chunk < 1:
        raise DataError(f"chunk is {chunk}; expected 1 or more texts at a time")
    source, feed = _feed_of(data, split, chunk)
    texts = Texts(source, chunk, feed, _columns(source, feed, Wanted(text, text_pair, label)))
    # What is wrong with the first texts shows at once, and a source without any is refused.
    next(texts.chunks())
    return texts


def _open_described(told: Mapping[str, Any], chunk: int) -> Texts:
    known = ("path", "split", "text", "text_pair", "label")
    if unknown := [name for name in told if name not in known]:
        raise DataError(f"{told['path']}: unknown entry {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    return open_texts(
        told["path"], chunk=chunk, **{name: value for name, value in told.items() if name != "path"}
    )


def _feed_of(data: Any, split: str | None, chunk: int) -> tuple[str, Feed]:
    path = Path(data).expanduser() if isinstance(data, str | Path) else None
    if path is not None and path.is_file() and path.suffix.lower() in STREAMS:
        return str(path), lambda wanted: stream(path, chunk, wanted)
    table = _of_examples(data) if isinstance(data, Examples) else table_of(data, split)
    return table.source, lambda _: _sliced(table, chunk)


def _of_examples(examples: Examples) -> Table:
    columns: dict[str, Sequence[Any]] = {"text": examples.texts}
    if examples.pairs is not None:
        columns["text_pair"] = examples.pairs
    if examples.labels is not None:
        columns["label"] = examples.labels
    names = {"label": examples.label_names} if examples.label_names else {}
    return Table(columns, names, examples.source)


def _sliced(table: Table, chunk: int) -> Iterator[Table]:
    count = len(next(iter(table.columns.values()), ()))
    for start in range(0, count, chunk):
        part = {name: values[start : start + chunk] for name, values in table.columns.items()}
        yield replace(table, columns=part)


def _columns(source: str, feed: Feed, wanted: Wanted) -> Columns:
    """Returns the columns to read, as the first rows show them."""
    head = next(feed(None), None)
    if head is None:
        raise DataError(f"{source}: no examples; expected at least one row with a text")
    check_given(head, wanted)
    text, pair = (wanted.text, wanted.text_pair) if wanted.text else text_columns(head, wanted)
    label = wanted.label or first_of(head, LABEL, but=text)
    taken = {"text": text, "text_pair": pair, "label": wanted.label}
    say(replace(head, source=source), taken, {wanted.text, wanted.text_pair, wanted.label})
    names = head.names.get(label) if label else None
    numbers = _numbers(source, feed, wanted.label) if wanted.label else None
    return Columns(text, pair, wanted.label, names, numbers)


def _numbers(source: str, feed: Feed, label: str) -> Callable[[str], Any] | None:
    """Returns what turns the labels of a csv file into numbers, if every one of them is one."""
    if Path(source).suffix.lower() not in {".csv", ".tsv"}:
        return None
    converters: list[Callable[[str], Any]] = [int, float]
    for table in feed([label]):
        for value in filter(None, table.columns[label]):
            while converters and not _converts(value, converters[0]):
                del converters[0]
    return converters[0] if converters else None


def _converts(value: str, convert: Callable[[str], Any]) -> bool:
    try:
        convert(value)
    except ValueError:
        return False
    return True


def _value(label: Any, columns: Columns) -> Any:
    """Returns a label as `read_examples` gives it, None where there is none."""
    label = as_label(label)
    if label is None or label == "" or (columns.label_names and label == UNLABELLED):
        return None
    return columns.numbers(label) if columns.numbers else label


def _checked(table: Table, column: str, before: int) -> list[str | None]:
    """Returns a column of texts, None for those that are missing or blank."""
    values = table.columns[column]
    bad = [
        f"row {before + row} ({shown(value)})"
        for row, value in enumerate(values)
        if not isinstance(value, str) and shown(value) != "missing"
    ]
    if bad:
        raise DataError(
            f"{table.source}: column {column!r} must hold text; found something else in {listed(bad, 5)}"
        )
    return [value if isinstance(value, str) and not value.isspace() and value else None for value in values]
