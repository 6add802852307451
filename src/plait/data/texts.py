"""Texts read chunk by chunk, as often as wanted: memory does not grow with the size of the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from plait.data.cells import Reader
from plait.data.columns import (
    LABEL,
    Table,
    Wanted,
    check_given,
    checked,
    first_of,
    label_of,
    none_left,
    say,
    say_skipped,
    text_columns,
)
from plait.data.encoding import Feed
from plait.data.examples import Examples
from plait.data.reading import CHUNK, described, is_described, source_of
from plait.errors import DataError


@dataclass(frozen=True)
class Columns:
    """Which columns are read; `read` gives a label from what its column holds, as all of it shows."""

    text: str
    text_pair: str | None
    label: str | None
    label_names: tuple[str, ...] | None
    read: Reader | None = None

    @property
    def texts(self) -> list[str]:
        """Returns the names of the columns of texts."""
        return [name for name in (self.text, self.text_pair) if name is not None]

    @property
    def wanted(self) -> list[str]:
        """Returns the names of the columns that are read."""
        return self.texts + ([] if self.label is None else [self.label])


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
            raise DataError(none_left(self.source, read, self._columns.texts))
        if self._seen is None and kept < read:
            say_skipped(self.source, read - kept, read)
        self._seen = kept, read - kept

    def _rows(self, table: Table, before: int) -> list[tuple[Any, ...]]:
        """Returns the rows with a text as tuples (text, pair, label)."""
        columns = self._columns
        texts = checked(table, columns.text, before)
        nothing: list[None] = [None] * len(texts)
        pairs = checked(table, columns.text_pair, before) if columns.text_pair else nothing
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
            tuple(map(columns.read, labels)) if columns.read else None,
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

    Files are read in bounded memory (but for one JSON document), data sets that stream as well; what is in memory is
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
    if is_described(data):
        told = described(data, split=split, text=text, text_pair=text_pair, label=label)
        return open_texts(told.pop("path"), chunk=chunk, **told)
    if chunk < 1:
        raise DataError(f"chunk is {chunk}; expected 1 or more texts at a time")
    source = source_of(data, split, chunk)
    columns = _columns(source.name, source.tables, Wanted(text, text_pair, label))
    texts = Texts(source.name, chunk, source.tables, columns)
    # What is wrong with the first texts shows at once, and a source without any is refused.
    next(texts.chunks())
    return texts


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
    read = None
    if wanted.label:
        values = (value for table in feed([wanted.label]) for value in table.columns[wanted.label])
        read = label_of(values, untyped=head.untyped, named=names is not None)
    return Columns(text, pair, wanted.label, names, read)
