"""Where the engine reads parameters from, and how they are cut into chunks that fit the processor's cache."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import xxhash
from torch import Tensor

from plait.checkpoints.headers import Derived
from plait.checkpoints.writer import Slot
from plait.errors import SourceError


@runtime_checkable
class Place(Protocol):
    """What is known of a parameter from file headers alone."""

    @property
    def dtype(self) -> torch.dtype:
        """Returns the stored dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape."""

    @property
    def file(self) -> Path:
        """Returns the file it lies in."""

    @property
    def start(self) -> int:
        """Returns the offset of its first byte in the file; -1 where its bytes do not lie there as they are."""

    @property
    def derived(self) -> Derived | None:
        """Returns what computes it, any piece by itself; None where it is stored."""


@runtime_checkable
class TensorSource(Protocol):
    """Named parameters that are read late, one at a time."""

    @property
    def name(self) -> str:
        """Returns the name used in messages, and as part of what random numbers depend on."""

    def header(self, parameter: str) -> Place:
        """Returns what the file header says of a parameter; KeyError when there is none."""

    def read(self, parameter: str) -> Tensor:
        """Returns the parameter."""

    def note(self, parameter: str, digest: str) -> None:
        """Takes the xxh3-128 hex digest of the parameter's stored bytes, which somebody computed while reading."""

    def __contains__(self, parameter: object) -> bool:
        """Returns whether there is such a parameter."""


@dataclass(frozen=True)
class TensorPlace:
    """The place of a tensor that has to be read whole."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path = Path()
    start: int = -1
    derived: Derived | None = None


@dataclass(frozen=True)
class InMemory:
    """Tensors in memory as a source."""

    name: str
    tensors: Mapping[str, Tensor]

    def __contains__(self, parameter: object) -> bool:
        return parameter in self.tensors

    def header(self, parameter: str) -> TensorPlace:
        """Returns dtype and shape."""
        tensor = self.tensors[parameter]
        return TensorPlace(tensor.dtype, tuple(tensor.shape))

    def read(self, parameter: str) -> Tensor:
        """Returns the tensor itself."""
        return self.tensors[parameter]

    def note(self, parameter: str, digest: str) -> None:
        """Ignores the digest."""


@dataclass(frozen=True)
class CheckpointView:
    """Some of a checkpoint's parameters under names of one's own: those of its body, or of its head.

    `rows` puts the labels of a head in another order: it applies to the parameters with a row per label, which are
    read whole.
    """

    checkpoint: Any
    stored: Mapping[str, str]
    rows: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Returns the checkpoint's name."""
        return str(self.checkpoint.name)

    def __contains__(self, parameter: object) -> bool:
        return parameter in self.stored

    def header(self, parameter: str) -> Place:
        """Returns what the checkpoint's headers say of the parameter."""
        found = self.checkpoint.header(self.stored[parameter])
        if self._labelled(parameter):
            return TensorPlace(found.dtype, tuple(found.shape))
        place: Place = found
        return place

    def read(self, parameter: str) -> Tensor:
        """Returns the parameter, its rows in the order asked for."""
        tensor: Tensor = self.checkpoint.read(self.stored[parameter])
        return tensor[list(self.rows)] if self.rows is not None and self._labelled(parameter) else tensor

    def note(self, parameter: str, digest: str) -> None:
        """Hands the digest to the checkpoint."""
        self.checkpoint.note_hash(self.stored[parameter], digest)

    def _labelled(self, parameter: str) -> bool:
        return self.rows is not None and parameter in self.checkpoint.label_parameters


def body(checkpoint: Any) -> CheckpointView:
    """Returns the parameters of a checkpoint's body, by body-relative names."""
    return CheckpointView(checkpoint, checkpoint.body)


def head(
    checkpoint: Any, rows: tuple[int, ...] | None = None, stored: Mapping[str, str] | None = None
) -> CheckpointView:
    """Returns the parameters of a checkpoint's head, labels in the order `rows` where that is given.

    `stored` names more than the head's own parameters: a pooler that stays with it.
    """
    return CheckpointView(checkpoint, checkpoint.head if stored is None else stored, rows)


CHUNK = 2**17
"""Entries of a piece: 512 kB of float32 per source. Smaller ones cost interpreter time, larger ones leave the cache."""


@dataclass(frozen=True)
class Chunk:
    """Entries `start` to `stop` of a flat parameter, seen in `shape`; `rows` when they are whole leading rows."""

    start: int
    stop: int
    shape: tuple[int, ...]
    rows: slice | None = None

    @property
    def size(self) -> int:
        """Returns the number of entries."""
        return self.stop - self.start


def whole(slot: Slot) -> Chunk:
    """Returns the one piece that is all of a parameter."""
    return Chunk(0, torch.Size(slot.shape).numel(), slot.shape, slice(None))


def flat_chunks(slot: Slot) -> Iterator[Chunk]:
    """Yields flat pieces of a parameter, whatever its shape."""
    total = torch.Size(slot.shape).numel()
    for start in range(0, total, CHUNK):
        stop = min(start + CHUNK, total)
        yield Chunk(start, stop, (stop - start,))


def row_chunks(slot: Slot) -> Iterator[Chunk]:
    """Yields pieces made of whole leading rows (at least one), which keep the parameter's other axes."""
    row = torch.Size(slot.shape[1:]).numel()
    step = max(1, CHUNK // max(row, 1))
    for first in range(0, slot.shape[0], step):
        last = min(first + step, slot.shape[0])
        yield Chunk(first * row, last * row, (last - first, *slot.shape[1:]), slice(first, last))


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


class ChunkReader:
    """One source's parameter, handed out piece by piece as float32."""

    def __init__(self, files: Files, source: TensorSource, parameter: str, *, digest: bool = False) -> None:
        """Looks up where the parameter lies; with `digest` the bytes are hashed as they pass, in order."""
        place = source.header(parameter)
        self.source, self.parameter = source, parameter
        self._dtype, self._file, self._start = place.dtype, place.file, place.start
        self._derived = place.derived
        stored = place.start >= 0 and self._derived is None
        self._descriptor = files.descriptor(place.file) if stored else None
        held = not stored and self._derived is None
        self._held = source.read(parameter).detach().reshape(-1) if held else None
        self._hash: Any = xxhash.xxh3_128() if digest and not held else None

    def fill(self, target: Tensor, start: int) -> None:
        """Writes the entries from `start` on into a flat float32 tensor."""
        if self._derived is not None:
            self._derived.fill(target, start, None if self._hash is None else self._hash.update)
        elif self._held is not None:
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


class StackBuffer:
    """One worker's memory: rows of float32 for the pieces of all sources, used again for every piece."""

    def __init__(self) -> None:
        """Reserves nothing yet."""
        self._memory = torch.empty(0)

    def stack(self, feeds: Sequence[ChunkReader], piece: Chunk) -> Tensor:
        """Returns the same piece of all sources, stacked; valid until the next call."""
        needed = len(feeds) * piece.size
        if self._memory.numel() < needed:
            self._memory = torch.empty(needed)
        rows = self._memory[:needed].view(len(feeds), piece.size)
        for row, feed in zip(rows, feeds, strict=True):
            feed.fill(row, piece.start)
        return rows.view(len(feeds), *piece.shape)
