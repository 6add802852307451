"""How fast this machine reads, writes and merges; measured without touching anybody's weights, in about a second."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plait.checkpoints.writer import Slot
from plait.merging.chunks import Files, InMemory, StackBuffer
from plait.merging.engine import RuleInputs, in_pieces, one_torch_thread
from plait.merging.job import Job
from plait.merging.thresholds import Thresholds

PROBE = 64 * 2**20
"""Bytes written and read to time a disk."""
ASSUMED = 500e6
"""Bytes a second of a disk that cannot be tried: an ordinary solid-state disk on SATA."""
ENTRIES = 2**20
"""Entries of the parameter on which a rule that takes pieces is timed: enough that a sample of them is a small part."""
SIDES = (128, 320)
"""Sides of the two matrices on which a rule that needs whole matrices is timed."""
LONG_ENOUGH = 0.03
"""Seconds after which a timing is believed."""


@dataclass(frozen=True)
class Disk:
    """Bytes a second, and how that is known."""

    read: float
    write: float
    how: str


def disk_rate(beside: Path, most: int) -> Disk:
    """Returns the speed of the disk that `beside` will lie on, from a nameless file of at most `most` bytes.

    The file is flushed and dropped from the cache before it is read; a RAM disk has nothing to drop and is as quick as
    memory.
    """
    folder = next(place for place in (beside, *beside.parents) if place.is_dir())
    size = max(2**20, min(PROBE, most))
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return _timed(file.fileno(), size, folder)
    except OSError:
        return Disk(ASSUMED, ASSUMED, f"assumed: {folder} cannot be written to try it")


def _timed(descriptor: int, size: int, folder: Path) -> Disk:
    block = memoryview(os.urandom(2**20))
    count = size // len(block)
    begin = time.perf_counter()
    for place in range(count):
        os.pwrite(descriptor, block, place * len(block))
    os.fsync(descriptor)
    written = time.perf_counter() - begin
    with suppress(AttributeError, OSError):  # not every system can drop pages
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    buffer, begin = memoryview(bytearray(len(block))), time.perf_counter()
    for place in range(count):
        os.preadv(descriptor, [buffer], place * len(block))
    read = time.perf_counter() - begin
    total = count * len(block)
    return Disk(total / max(read, 1e-9), total / max(written, 1e-9), f"measured on {total / 1e6:.0f} MB at {folder}")


@dataclass(frozen=True)
class Speed:
    """What a rule costs on one thread: seconds are `scale` · entries ** `power`, bytes grow with the entries.

    Attributes:
        scale: seconds of one entry (of each source, together).
        power: 1 where pieces are merged one by one; up to 1.5 for matrices that are decomposed.
        fixed: bytes held whatever the size of a tensor, where it is merged piece by piece.
        growing: bytes held for every entry of a tensor that is merged whole.
    """

    scale: float
    power: float
    fixed: int
    growing: float

    def seconds(self, entries: int) -> float:
        """Returns the time of one parameter on one thread."""
        return float(self.scale * entries**self.power)

    def memory(self, entries: int) -> float:
        """Returns the bytes that one thread holds while it merges one parameter."""
        return self.fixed + self.growing * entries


def rule_speed(job: Job, slot: Slot) -> Speed:
    """Returns what the rule of a parameter costs, tried on random numbers in its sources' dtypes."""
    if in_pieces(job, slot):
        probe = _shaped(slot, ENTRIES)
        seconds, memory = _tried(job, probe)
        return Speed(seconds / _entries(probe), 1.0, memory, 0.0)
    small, large = (replace(slot, shape=_square(slot, side)) for side in SIDES)
    (quick, _), (slow, memory) = _tried(job, small), _tried(job, large)
    few, many = _entries(small), _entries(large)
    power = min(1.5, max(1.0, math.log(slow / quick) / math.log(many / few)))
    return Speed(slow / many**power, power, 0, memory / many)


def _entries(slot: Slot) -> int:
    return torch.Size(slot.shape).numel()


def _square(slot: Slot, side: int) -> tuple[int, ...]:
    return (side, side) if len(slot.shape) == 2 else (side * side, *[1] * (len(slot.shape) - 1))


def _shaped(slot: Slot, entries: int) -> Slot:
    """Returns a slot of about so many entries in rows as wide as those of another."""
    row = torch.Size(slot.shape[1:]).numel()
    return replace(slot, shape=(max(2, -(-entries // max(1, row))), *slot.shape[1:]))


def _inputs(job: Job, slot: Slot, files: Files) -> RuleInputs:
    """Returns what the engine would give the rule for a slot of random numbers."""
    draw = torch.Generator().manual_seed(0)

    def held(source: Any) -> InMemory:
        dtype = source.header(slot.name).dtype
        return InMemory(source.name, {slot.name: torch.randn(slot.shape, generator=draw).to(dtype)})

    known = [_Ones(slot.shape)] * len(job.sources)
    probe = replace(
        job,
        sources=tuple(held(source) for source in job.sources),
        slots=(slot,),
        base=None if job.base is None or slot.name not in job.base else held(job.base),
        importances=None if job.importances is None else tuple(known),
        grams=None if job.grams is None else tuple(_Grams(slot.shape) for _ in job.sources),
    )
    return RuleInputs(probe, slot, files, StackBuffer(), Thresholds(), digest=False)


@dataclass(frozen=True)
class _Ones:
    """Importances of rows."""

    shape: Sequence[int]

    def of(self, _: str) -> Tensor:
        return torch.ones(self.shape[0], *[1] * (len(self.shape) - 1))


@dataclass(frozen=True)
class _Grams:
    """Gram matrices of independent inputs."""

    shape: Sequence[int]

    def of(self, _: str) -> Tensor | None:
        return torch.eye(self.shape[1]) if len(self.shape) == 2 else None


def _tried(job: Job, slot: Slot) -> tuple[float, int]:
    """Returns the processor's seconds that a rule takes for a slot, and the bytes that it holds at most."""
    with Files() as files, torch.inference_mode(), one_torch_thread():
        probe = _inputs(job, slot, files)
        with PeakMemory() as held:
            _merge(probe, files)
        times: list[float] = []
        while sum(times) < LONG_ENOUGH and len(times) < 20:
            begin = time.process_time()
            _merge(probe, files)
            times.append(max(time.process_time() - begin, 1e-9))
    return min(times), held.peak


def _merge(probe: RuleInputs, files: Files) -> None:
    # Thresholds are found when the inputs are made.
    inputs = RuleInputs(probe.job, probe.slot, files, StackBuffer(), Thresholds(), digest=False)
    for piece in inputs.pieces():
        inputs.merge(piece).to(probe.slot.dtype)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors made inside: `peak` is the most at one time."""

    def __init__(self) -> None:
        """Has seen nothing."""
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Does an operation and counts what it makes."""
        given = {_place(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and _place(leaf) not in given:
                storage = leaf.untyped_storage()
                self._alive[_place(leaf)] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {place: kept for place, kept in self._alive.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return found


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
