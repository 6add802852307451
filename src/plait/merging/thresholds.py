"""Exact thresholds for trimming: the k-th greatest change, found without sorting or holding the changes.

A sample says between which two values the k-th greatest must lie; one pass then counts what lies above and keeps the
few entries between, among which it is selected. Should the sample mislead, a two-level histogram of the bits decides.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plait.checkpoints.writer import Slot
from plait.merging.chunks import Chunk, ChunkReader, Files, StackBuffer, flat_chunks
from plait.merging.job import Job

Magnitudes = npt.NDArray[np.float32]
Stream = Callable[[], Iterator[Magnitudes]]
"""Passes over the magnitudes of all sources, [n, m] at a time, anew at each call; an item lives until the next."""
Share = Literal["density", "outliers"]
"""The option that says how many of the greatest magnitudes count."""

BLOCK = 256
SMALL = 2**15
SAMPLE = 2**16
MODEL_SAMPLE = 2**20
MARGIN = 5.0
ROOM = 2**21
"""Entries per source kept between the two values, at most: 8 MB each."""


def kept(density: float, size: int) -> int:
    """Returns k, how many of `size` entries survive: ⌈density · size⌉, guarded against rounding of the product."""
    return min(size, max(0, math.ceil(density * size - 1e-9 * size)))


def dropped(share: float, size: int) -> int:
    """Returns how many of `size` entries are outliers: ⌊share · size⌋, guarded like `kept`; none of a few."""
    return min(size, max(0, math.floor(share * size + 1e-9 * size)))


@dataclass(frozen=True)
class Bracket:
    """Two values per source between which its threshold is expected."""

    low: Magnitudes
    high: Magnitudes


def bracket(sample: Magnitudes, share: float, size: int) -> Bracket:
    """Returns values that enclose the k-th greatest magnitude with near certainty.

    Entries near each other change together (rows of rare tokens do not move at all), so that how far a sampled
    quantile may be off is taken from how much the blocks of the sample differ.

    Args:
        sample: [n, blocks, entries].
        share: k / size.
        size: number of entries that the sample stands for.
    """
    flat = np.sort(sample.reshape(len(sample), -1), axis=1)[:, ::-1]
    count = flat.shape[1]
    middle = flat[:, min(count - 1, int(share * count))]
    above = (sample > middle[:, None, None]).mean(2)
    spread = MARGIN * above.std(1) / math.sqrt(above.shape[1]) + 4 / count + 4 / size
    least = np.clip(((share + spread) * count).astype(int), 0, count - 1)
    most = ((share - spread) * count).astype(int)
    rows = np.arange(len(flat))
    high = np.where(most < 0, np.float32(np.inf), flat[rows, np.clip(most, 0, count - 1)])
    low = np.where((share + spread) * count >= count - 1, np.float32(0.0), flat[rows, least])
    return Bracket(low.astype(np.float32), high.astype(np.float32))


def anywhere(sources: int) -> Bracket:
    """Returns the bracket that says nothing."""
    return Bracket(np.zeros(sources, dtype=np.float32), np.full(sources, np.inf, dtype=np.float32))


class Count:
    """What one pass learns of one source: how many lie above the bracket, how many at or above its low end."""

    def __init__(self, low: np.float32, high: np.float32) -> None:
        """Begins at zero."""
        self.low, self.high = low, high
        self.above = self.reaching = self.held = 0
        self._between: list[Magnitudes] = []

    def add(self, values: Magnitudes) -> None:
        """Counts some magnitudes."""
        reaching = values >= self.low
        over = values > self.high
        self.above += int(np.count_nonzero(over))
        self.reaching += int(np.count_nonzero(reaching))
        reaching &= ~over
        reaching &= values > self.low
        inside = values[reaching]
        self.held += len(inside)
        if self.held <= ROOM:
            self._between.append(inside)

    def merge(self, other: Count) -> None:
        """Adds what was counted elsewhere."""
        self.above += other.above
        self.reaching += other.reaching
        self.held += other.held
        self._between += other._between

    def select(self, k: int) -> float | None:
        """Returns the k-th greatest magnitude, or None when the bracket missed it."""
        rank = k - self.above
        if self.held > ROOM or rank < 1 or k > self.reaching:
            return None
        if rank > self.held:
            return float(self.low)
        between = np.concatenate(self._between)
        return float(np.partition(between, len(between) - rank)[len(between) - rank])


def by_histogram(stream: Stream, k: int, source: int) -> float:
    """Returns the k-th greatest magnitude of one source, exactly, whatever the values: two passes.

    The bits of non-negative floats, read as integers, have the order of the floats: the upper half of the threshold's
    bits comes from a histogram of upper halves, the lower half from one of those that share it.
    """
    upper = np.zeros(2**16, dtype=np.int64)
    for item in stream():
        upper += np.bincount(item[source].view(np.uint32) >> 16, minlength=2**16)
    top, rest = _locate(upper, k)
    lower = np.zeros(2**16, dtype=np.int64)
    for item in stream():
        bits = item[source].view(np.uint32)
        lower += np.bincount(bits[bits >> 16 == top] & 0xFFFF, minlength=2**16)
    bottom, _ = _locate(lower, rest)
    return float(np.array([top << 16 | bottom], dtype=np.uint32).view(np.float32)[0])


def _locate(counts: npt.NDArray[np.int64], k: int) -> tuple[int, int]:
    """Returns the bin that holds the k-th greatest, and its rank within that bin."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, k))
    before = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, k - before


def tally(stream: Stream, found: Bracket) -> list[Count]:
    """Returns what one pass over a stream counts, per source."""
    counts = [Count(low, high) for low, high in zip(found.low, found.high, strict=True)]
    for item in stream():
        for count, values in zip(counts, item, strict=True):
            count.add(values)
    return counts


def kth_greatest(streams: Sequence[Stream], found: Bracket, k: int, threads: int = 1) -> list[float]:
    """Returns per source the exact k-th greatest of all magnitudes, by histogram where the bracket missed it."""
    with ThreadPoolExecutor(threads) as pool:
        total, *others = pool.map(lambda stream: tally(stream, found), streams)
    for counts in others:
        for count, other in zip(total, counts, strict=True):
            count.merge(other)
    chosen = [count.select(k) for count in total]
    return [by_histogram(lambda: _chain(streams), k, i) if c is None else c for i, c in enumerate(chosen)]


def _chain(streams: Iterable[Stream]) -> Iterator[Magnitudes]:
    for stream in streams:
        yield from stream()


class Changes:
    """The magnitudes |θ_j − θ_0| of one parameter, read a piece at a time."""

    def __init__(self, job: Job, slot: Slot, files: Files) -> None:
        """Reads nothing yet."""
        assert job.base is not None
        self._everyone = [*job.sources, job.base]
        self._slot, self._files = slot, files
        self.sources = len(job.sources)
        self.size = torch.Size(slot.shape).numel()

    def pieces(self) -> Iterator[Magnitudes]:
        """Yields [n, m] magnitudes until all entries have passed; each lives until the next."""
        return self._read(flat_chunks(self._slot))

    def blocks(self, step: int) -> Iterator[Magnitudes]:
        """Yields [n, BLOCK] magnitudes every `step` entries."""
        starts = range(0, self.size - BLOCK + 1, step)
        return (item.copy() for item in self._read(Chunk(start, start + BLOCK, (BLOCK,)) for start in starts))

    def _read(self, pieces: Iterable[Chunk]) -> Iterator[Magnitudes]:
        desk, feeds = StackBuffer(), [ChunkReader(self._files, source, self._slot.name) for source in self._everyone]
        for piece in pieces:
            stack = desk.stack(feeds, piece)
            changes: Tensor = stack[:-1]
            yield changes.sub_(stack[-1]).abs_().numpy()


class Thresholds:
    """Thresholds per parameter, or one set for the whole model that is found when first asked for."""

    def __init__(self, threads: int = 1) -> None:
        """Knows nothing yet; `threads` work on those of the whole model."""
        self._lock = threading.Lock()
        self._threads = threads
        self._model: dict[str, Tensor] = {}

    def of(self, job: Job, slot: Slot, files: Files, share: Share = "density") -> Tensor:
        """Returns per source the least magnitude among the greatest of a parameter.

        Those are the share of its entries that the option `density` keeps, or that the option `outliers` drops.
        """
        if setting(job, "scope") == "tensor":
            return least(job, [Changes(job, slot, files)], share, SAMPLE, 1)
        with self._lock:
            if share not in self._model:
                slots = [s for s in job.slots if s.dtype.is_floating_point and job.rule_for(s) is job.rule]
                everything = [Changes(job, s, files) for s in slots]
                self._model[share] = least(job, everything, share, MODEL_SAMPLE, self._threads)
            return self._model[share]


def least(job: Job, changes: Sequence[Changes], share: Share, sample: int, threads: int) -> Tensor:
    """Returns per source the least magnitude among the greatest, how many being what the option says."""
    size = sum(change.size for change in changes)
    count = (kept if share == "density" else dropped)(float(setting(job, share)), size)
    return thresholds(changes, count, sample, threads)


def setting(job: Job, name: str) -> Any:
    """Returns an option of the rule, or its default."""
    return job.options.get(name, job.rule.options[name].default)


def thresholds(changes: Sequence[Changes], k: int, sample: int, threads: int) -> Tensor:
    """Returns per source the exact k-th greatest magnitude; infinite where k is 0, and 0 where k is everything."""
    size = sum(change.size for change in changes)
    streams = [change.pieces for change in changes]
    if k in (0, size):
        return torch.full((changes[0].sources,), math.inf if k == 0 else 0.0)
    if size <= SMALL:
        return torch.tensor(_held(_chain(streams), k))
    step = max(BLOCK, size // max(1, sample // BLOCK))
    blocks = [block for change in changes for block in change.blocks(step)]
    # A model of nothing but crumbs has no blocks to sample: the histogram takes it as it is.
    found = bracket(np.stack(blocks, axis=1), k / size, size) if blocks else anywhere(changes[0].sources)
    return torch.tensor(kth_greatest(streams, found, k, threads))


def _held(pieces: Iterable[Magnitudes], k: int) -> list[float]:
    values = np.concatenate([piece.copy() for piece in pieces], axis=1)
    place = values.shape[1] - k
    result: list[float] = np.partition(values, place, axis=1)[:, place].tolist()
    return result
