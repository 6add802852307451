"""Texts read chunk by chunk, as often as wanted: memory does not grow with the size of the file."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from plait.data.arrow import texts_in, write_texts
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
from plait.errors import DataError, one_line

Hashes = npt.NDArray[np.int64]
"""Two integers per text, [n, 2]."""


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
    _hashes: Hashes | None = field(default=None, repr=False)

    @property
    def kept(self) -> bool:
        """Says whether they lie in a file of our own, which nobody changes."""
        return self._hashes is not None

    def hashed(self, size: int | None = None) -> Iterator[tuple[Examples, Callable[[], Hashes]]]:
        """Yields the chunks with what gives the hashes of their texts, which are computed once where texts are kept."""
        start = 0
        for examples in self.chunks(size):
            stop = start + len(examples)
            known = None if self._hashes is None else self._hashes[start:stop]
            yield examples, examples.hashes if known is None else partial(np.array, known)
            start = stop

    @property
    def fingerprint(self) -> str:
        """Returns a hash over all texts, whatever the chunks they come in: one pass where they are not kept."""
        total = xxhash.xxh3_128()
        if self._hashes is not None:
            total.update(np.ascontiguousarray(self._hashes).data)
        else:
            for examples in self.chunks():
                total.update(examples.hashes().data)
        return total.hexdigest()

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

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Returns the names that label indices stand for, where the source says so."""
        return self._columns.label_names

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
        if not self.kept:  # what is kept has no rows without a text
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
    once: bool = False,
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
        once: Read the source once, into a file of our own that all passes read.

    Raises:
        DataError: When there is no file, no column of texts, or no text.
    """
    if is_described(data):
        told = described(data, split=split, text=text, text_pair=text_pair, label=label)
        return open_texts(told.pop("path"), chunk=chunk, once=once, **told)
    if chunk < 1:
        raise DataError(f"chunk is {chunk}; expected 1 or more texts at a time")
    source = source_of(data, split, chunk)
    columns = _columns(source.name, source.tables, Wanted(text, text_pair, label))
    texts = Texts(source.name, chunk, source.tables, columns)
    if once:
        return keep_texts(texts)
    # What is wrong with the first texts shows at once, and a source without any is refused.
    next(texts.chunks())
    return texts


def keep_texts(texts: Texts) -> Texts:
    """Returns texts read once: they lie in an Arrow file from then on, with their labels and hashes.

    The file is in the folder for temporary files, and goes when nobody has the texts any more.

    Raises:
        DataError: no text, something else than text, or no room for the file.
    """
    if texts.kept:
        return texts
    place = Path(tempfile.mkdtemp(prefix="plait-texts-"))
    hashes: list[Hashes] = []
    try:
        file = place / "texts.arrow"
        write_texts(file, texts, hashes)
        first = next(texts_in(file))
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        raise DataError(
            f"{texts.source}: its texts cannot be kept in {place.parent} ({one_line(error)}); make room, or name "
            "another folder in TMPDIR"
        ) from error
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    named = [name if name in first.columns else None for name in ("text_pair", "label")]
    columns = Columns("text", named[0], named[1], texts.label_names, None if named[1] is None else _as_it_is)
    found = Texts(
        texts.source, texts.chunk, lambda _: texts_in(file), columns, (texts.count(), texts.skipped),
        np.concatenate(hashes),
    )  # fmt: skip
    weakref.finalize(found, shutil.rmtree, place, True)
    return found


def _as_it_is(label: Any) -> Any:
    return label


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
