"""What a merge will cost, from headers alone: bytes, shards, seconds and memory; apart from plan.py, as it measures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.writer import Slot, parse_size, split
from plait.merging.engine import THREADS, in_pieces
from plait.merging.job import Job
from plait.merging.plan import Plan
from plait.merging.rates import Disk, Speed, disk_rate, rule_speed
from plait.merging.run import jobs, language_jobs, only_task, output_dtype
from plait.merging.thresholds import ROOM, kept, setting

LIBRARIES = 0.35e9
"""Bytes of anonymous memory that Python, PyTorch and transformers take, where the system does not tell."""


class _Later:
    """Statistics that are not there yet."""

    def of(self, parameter: str) -> Tensor | None:  # noqa: ARG002 (of any)
        return None


@dataclass(frozen=True)
class Part:
    """A parameter of a merge, its rule, and what the rule costs."""

    job: Job
    slot: Slot
    rule: str
    pieces: bool
    speed: Speed

    @property
    def entries(self) -> int:
        """Returns the entries of the parameter."""
        return prod(self.slot.shape)

    @property
    def bytes_once(self) -> int:
        """Returns the bytes of the parameter in all files that the rule reads."""
        return sum(prod(found.shape) * found.dtype.itemsize for found in self._headers())

    def _headers(self) -> Iterable[Any]:
        based = "base" in self.job.rule_for(self.slot).inputs and self.job.base is not None
        every = [*self.job.sources, *([self.job.base] if based else [])]
        return (source.header(self.slot.name) for source in every if source is not None)

    @property
    def passes(self) -> int:
        """Returns how often it is read: once more for each kind of threshold."""
        rule = self.job.rule_for(self.slot)
        shares = [share for name, share in SHARES.items() if name in rule.inputs]
        return 1 + sum(0 < kept(float(setting(self.job, share)), self.entries) < self.entries for share in shares)

    @property
    def again_from_disk(self) -> bool:
        """Returns whether a later pass comes when the files have left the memory: after all other parameters."""
        return self.passes > 1 and setting(self.job, "scope") == "model"


SHARES = {"thresholds": "density", "ceilings": "outliers"}
"""Inputs that cost a pass, and the option that says how much of it all they keep."""


def cost_of(plan: Plan) -> dict[str, Any]:
    """Returns what a merge will read, write, take and hold; no weight is read.

    `seconds` and `peak_memory_bytes` are estimates. The seconds follow from the disk and the rule as they were timed
    just now on numbers made up for it; statistics of texts and refinement come on top, whose models are counted in
    the memory.
    """
    parts = parts_of(plan)
    read = sum(part.bytes_once for part in parts) + _head_bytes(plan)
    again = sum(part.bytes_once * (part.passes - 1) for part in parts if part.again_from_disk)
    again = again if read > _memory_of_machine() / 2 else 0
    slots = [part.slot for part in parts]
    written = sum(slot.size for slot in slots) + _heads_written(plan)
    disk = disk_rate(Path(os.path.realpath(plan.recipe.output)), read + written)
    seconds, arithmetic = seconds_of(parts, (read + again, written), disk)
    peak, why = peak_of(plan, parts)
    return {
        "bytes_read": read + again,
        "bytes_written": written,
        "shards": max(1, len(split(slots, parse_size(plan.recipe.max_shard_size)))),
        "estimated_seconds": round(seconds, 2),
        "peak_memory_bytes": round(peak),
        "peak_memory": why,
        "rates": {
            "disk_read_bytes_per_second": round(disk.read),
            "disk_write_bytes_per_second": round(disk.write),
            "disk": disk.how,
            "arithmetic_seconds": round(arithmetic, 2),
            "arithmetic": f"{_rules(parts)} tried on random numbers, {workers()} threads",
        },
        **_whole(parts),
        "estimate": sentence(read + again, written, seconds, peak, disk),
    }


def parts_of(plan: Plan) -> list[Part]:
    """Returns the parameters of a merge, each with what its rule costs; each rule is timed once."""
    dtype = output_dtype(plan)
    unknown = [_Later() for _ in plan.sources] if plan.estimator or plan.forward else None
    known: dict[tuple[str, bool, int, int], Speed] = {}
    found = []
    for job in [*jobs(plan, unknown, dtype), *language_jobs(plan, dtype)]:
        for slot in job.slots:
            rule = job.rule_for(slot).name
            pieces = in_pieces(job, slot) if slot.dtype.is_floating_point else True
            key = (rule, pieces, len(job.sources), min(2, len(slot.shape)) if not pieces else 0)
            if key not in known:
                known[key] = rule_speed(job, slot)
            found.append(Part(job, slot, rule, pieces, known[key]))
    return found


def seconds_of(parts: Sequence[Part], moved: tuple[int, int], disk: Disk) -> tuple[float, float]:
    """Returns the seconds of a merge, and those of its arithmetic.

    Each thread reads, merges and writes in turn, so that one computes while another waits for the disk.
    """
    every = [part.speed.seconds(part.entries) for part in parts]
    waiting = moved[0] / disk.read + moved[1] / disk.write
    arithmetic = max([sum(every) / workers(), *every], default=0.0)
    return max(waiting, waiting / workers() + arithmetic), arithmetic


def workers() -> int:
    """Returns how many threads merge."""
    return min(THREADS, os.cpu_count() or 1)


def peak_of(plan: Plan, parts: Sequence[Part]) -> tuple[float, str]:
    """Returns the most bytes of memory that belong to no file, and what takes them."""
    held = sorted((_held(part) for part in parts), reverse=True)[: workers()]
    sizes = [sum(prod(h.shape) for h in _stored(source)) * 4 for source in plan.sources]
    merging, libraries = sum(held), _anonymous()
    if plan.forward or plan.recipe.refine:
        return libraries + sum(sizes) + max(sizes) + merging, "all sources in memory, as their layers are run"
    if plan.estimator is not None and set(plan.inputs.statistics) != {s.name for s in plan.sources}:
        needed = max(merging, 2 * max(sizes))
        return libraries + needed, "one source in memory at a time, and what is estimated of it"
    return libraries + merging, "pieces of every source in each thread"


def _held(part: Part) -> float:
    """Returns what one thread holds; thresholds keep the entries they choose among, and copies to choose with."""
    trimmed = sum(name in part.job.rule_for(part.slot).inputs for name in SHARES)
    among = 3 * 4 * min(ROOM, part.entries) * len(part.job.sources) if trimmed else 0
    return part.speed.memory(part.entries) + among


def _whole(parts: Sequence[Part]) -> dict[str, Any]:
    """Returns the largest parameter that has to be held whole, and by which rule, where that is so for any."""
    whole = [part for part in parts if not part.pieces]
    if not whole:
        return {}
    largest = max(whole, key=lambda part: part.speed.memory(part.entries))
    rules = ", ".join(sorted({part.rule for part in whole}))
    held = largest.speed.memory(largest.entries) / 1e9
    told = f"{rules} cannot be cut into pieces: {largest.slot.name} {list(largest.slot.shape)} takes {held:.2f} GB"
    return {"whole_tensors": f"{told} in each of {workers()} threads"}


def _rules(parts: Sequence[Part]) -> str:
    return ", ".join(dict.fromkeys(part.rule for part in parts))


def _stored(source: Checkpoint) -> list[Any]:
    return [source.header(name) for name in (*source.body.values(), *source.head.values())]


def _head_bytes(plan: Plan) -> int:
    return sum(_size(source, plan.alignment.own(source)) for source in plan.sources)


def _heads_written(plan: Plan) -> int:
    """Returns the bytes of the tasks' heads, which the only task of a merge has twice: beside it and in its model."""
    firsts = [plan.sources[members[0]] for members in plan.alignment.tasks.values()]
    times = 1 if only_task(plan) is None else 2
    width: torch.dtype = output_dtype(plan)
    return times * sum(_size(first, plan.alignment.own(first), width) for first in firsts)


def _size(source: Checkpoint, names: Mapping[str, str], dtype: torch.dtype | None = None) -> int:
    headers = [source.header(stored) for stored in names.values()]
    return sum(prod(h.shape) * (dtype or h.dtype).itemsize for h in headers)


def _anonymous() -> float:
    """Returns the bytes of this process that belong to no file: its libraries."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return LIBRARIES


def _memory_of_machine() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8e9


def sentence(read: int, written: int, seconds: float, peak: float, disk: Disk) -> str:
    """Returns the cost in a line for people."""
    hours, rest = divmod(round(seconds), 3600)
    long = f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
    time = long if seconds >= 60 else f"{seconds:.1f} s"
    return (
        f"reads {size(read)}, writes {size(written)}, takes about {time} at {disk.read / 1e6:,.0f} MB/s read and "
        f"{disk.write / 1e6:,.0f} MB/s written, and {size(peak)} of memory"
    )


def size(count: float) -> str:
    """Returns bytes as people say them."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"
