"""How a parameter is cut into pieces that fit the processor's cache, and read piece by piece."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from plait.checkpoints.writer import Slot
from plait.errors import SourceError
from plait.merging.parts import TensorSource

CHUNK = 2**17
"""Entries of a piece: 512 kB of float32 per source. Smaller ones cost interpreter time, larger ones leave the cache."""


@dataclass(frozen=True)
class Piece:
    """Entries `start` to `stop` of a flat parameter, seen in `shape`; `rows` when they are whole leading rows."""

    start: int
    stop: int
    shape: tuple[int, ...]
    rows: slice | None = None

    @property
    def size(self) -> int:
        """Returns the number of entries."""
        return self.stop - self.start


def whole(slot: Slot) -> Piece:
    """Returns the one piece that is all of a parameter."""
    return Piece(0, torch.Size(slot.shape).numel(), slot.shape, slice(None))


def flat_pieces(slot: Slot) -> Iterator[Piece]:
    """Yields flat pieces of a parameter, whatever its shape."""
    total = torch.Size(slot.shape).numel()
    for start in range(0, total, CHUNK):
        stop = min(start + CHUNK, total)
        yield Piece(start, stop, (stop - start,))


def row_pieces(slot: Slot) -> Iterator[Piece]:
    """Yields pieces made of whole leading rows (at least one), which keep the parameter's other axes."""
    row = torch.Size(slot.shape[1:]).numel()
    step = max(1, CHUNK // max(row, 1))
    for first in range(0, slot.shape[0], step):
        last = min(first + step, slot.shape[0])
        yield Piece(first * row, last * row, (last - first, *slot.shape[1:]), slice(first, last))


class Files:
    """Descriptors of files that are read at offsets, by any thread; use as a context manager."""

    def __init__(self) -> None:
        """Opens nothing yet."""
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    def descriptor(self, file: Path) -> int:
        """Returns the descriptor of a file, opened on first use.

        Raises:
            SourceError: it cannot be opened.
        """
        with self._lock:
            if file not in self._open:
                try:
                    self._open[file] = os.open(file, os.O_RDONLY)
                except OSError as error:
                    raise SourceError(f"{file} cannot be read: {error.strerror}") from None
            return self._open[file]

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            with suppress(OSError):
                os.close(descriptor)
        self._open.clear()


class Feed:
    """One source's parameter, handed out piece by piece as float32."""

    def __init__(self, files: Files, source: TensorSource, parameter: str, *, digest: bool = False) -> None:
        """Looks up where the parameter lies; with `digest` the bytes are hashed as they pass, in order."""
        place = source.header(parameter)
        self.source, self.parameter = source, parameter
        self._dtype, self._file, self._start = place.dtype, place.file, place.start
        self._descriptor = files.descriptor(place.file) if place.start >= 0 else None
        self._held = source.read(parameter).detach().reshape(-1) if place.start < 0 else None
        self._hash: Any = xxhash.xxh3_128() if digest and place.start >= 0 else None

    def fill(self, target: Tensor, start: int) -> None:
        """Writes the entries from `start` on into a flat float32 tensor."""
        if self._held is not None:
            target.copy_(self._held[start : start + target.numel()])
        elif self._dtype == torch.float32:
            self._read(target, start)
        else:
            raw = torch.empty(target.numel(), dtype=self._dtype)
            self._read(raw, start)
            target.copy_(raw)

    def _read(self, target: Tensor, start: int) -> None:
        assert self._descriptor is not None
        # A view as bytes: NumPy has no bfloat16.
        data = target.view(torch.uint8).numpy().data
        place = self._start + start * self._dtype.itemsize
        done = 0
        while done < data.nbytes:
            got = os.preadv(self._descriptor, [data[done:]], place + done)
            if got == 0:
                raise SourceError(
                    f"{self._file} ends inside {self.parameter}: it was cut short while being read"
                )
            done += got
        if self._hash is not None:
            self._hash.update(data)

    def finish(self) -> None:
        """Hands the hash of all bytes to the source."""
        if self._hash is not None:
            self.source.note(self.parameter, self._hash.hexdigest())


class Desk:
    """One worker's memory: rows of float32 for the pieces of all sources, used again for every piece."""

    def __init__(self) -> None:
        """Reserves nothing yet."""
        self._memory = torch.empty(0)

    def stack(self, feeds: Sequence[Feed], piece: Piece) -> Tensor:
        """Returns the same piece of all sources, stacked; valid until the next call."""
        needed = len(feeds) * piece.size
        if self._memory.numel() < needed:
            self._memory = torch.empty(needed)
        rows = self._memory[:needed].view(len(feeds), piece.size)
        for row, feed in zip(rows, feeds, strict=True):
            feed.fill(row, piece.start)
        return rows.view(len(feeds), *piece.shape)
