"""Runs a rule over every parameter: read, stack, apply, cast, hand over; in pieces, in parallel, straight to file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.checkpoints.writer import Slot, TensorWriter, bytes_of
from plait.errors import MergeError
from plait.merging.job import Job, prepare
from plait.merging.material import Material
from plait.merging.parts import TensorSource
from plait.merging.pieces import Desk, Files, whole
from plait.merging.rule import RuleEntry
from plait.merging.thresholds import Thresholds
from plait.progress import Tick, task

THREADS = 2
"""Workers unless told otherwise: two keep the memory bus busy, more wait for it."""


@dataclass(frozen=True)
class Written:
    """What a merge left on disk."""

    files: tuple[Path, ...]
    parameters: int


def combine(
    sources: Sequence[TensorSource], names: Sequence[str], rule: RuleEntry, **settings: Any
) -> Iterator[tuple[str, Tensor]]:
    """Yields every parameter's name and its merged tensor, in the order in which the first source stores them.

    Takes the settings of `prepare`: weights, importances, grams, base, options, dtype, seed. Checks come before the
    first tensor is read.

    Raises:
        RecipeError: options, weights or inputs that do not suit the rule.
        MergeError: parameters missing, of different shapes, not finite, or integers that differ.
    """
    job = prepare(sources, names, rule, **settings)
    return _combined(job)


def _combined(job: Job) -> Iterator[tuple[str, Tensor]]:
    thresholds = Thresholds()
    with Files() as files:
        for slot in job.slots:
            yield slot.name, _merged(job, slot, files, thresholds)


def merge_slot(job: Job, slot: Slot) -> Tensor:
    """Returns one merged parameter."""
    with Files() as files:
        return _merged(job, slot, files, Thresholds())


def _merged(job: Job, slot: Slot, files: Files, thresholds: Thresholds) -> Tensor:
    if not slot.dtype.is_floating_point:
        return copied(job, slot)
    with torch.no_grad():
        merged = Material(job, slot, files, Desk(), thresholds, digest=False).merge(whole(slot))
        return cast(merged, job, slot)


def write_merged(
    folder: Path,
    sources: Sequence[TensorSource],
    names: Sequence[str],
    rule: RuleEntry,
    *,
    rename: Callable[[str], str] | None = None,
    stem: str = "model",
    max_shard_size: int | str = "5GB",
    threads: int | None = None,
    digests: bool = True,
    **settings: Any,
) -> Written:
    """Writes the merged parameters into `folder` as safetensors, in pieces, and returns what was written.

    Takes the settings of `prepare` and those of `write_jobs`.

    Raises:
        RecipeError: options, weights or inputs that do not suit the rule.
        MergeError: parameters missing, of different shapes, not finite, or integers that differ.
        OutputError: no space, or not writable.
    """
    job = prepare(sources, names, rule, **settings)
    return write_jobs(
        folder,
        [job],
        rename=rename,
        stem=stem,
        max_shard_size=max_shard_size,
        threads=threads,
        digests=digests,
    )


def write_jobs(
    folder: Path,
    jobs: Sequence[Job],
    *,
    rename: Callable[[str], str] | None = None,
    stem: str = "model",
    max_shard_size: int | str = "5GB",
    threads: int | None = None,
    digests: bool = True,
) -> Written:
    """Writes the parameters of several prepared merges into one checkpoint and returns what was written.

    The result depends neither on the number of threads nor on the size of the pieces.

    Args:
        folder: an existing folder, usually that of `atomic_folder`.
        jobs: merges of different parameters.
        rename: from a parameter's name to the name it is stored under.
        stem: the file's name before `.safetensors`.
        max_shard_size: bytes (or `5GB`) above which further files are begun.
        threads: workers.
        digests: hash the sources' bytes as they pass and hand the hashes to the sources.

    Raises:
        MergeError: parameters that are not finite, or integers that differ.
        OutputError: no space, or not writable.
    """
    stored = {slot.name: rename(slot.name) if rename else slot.name for job in jobs for slot in job.slots}
    slots = [Slot(stored[slot.name], slot.dtype, slot.shape) for job in jobs for slot in job.slots]
    count = threads or min(THREADS, os.cpu_count() or 1)
    what = "merging by " + ", ".join(dict.fromkeys(job.rule.name for job in jobs))
    writer = TensorWriter(folder, slots, stem=stem, max_shard_size=max_shard_size)
    with writer, Files() as files, one_torch_thread(), task(what, len(slots)) as tick:
        runs = [Run(job, writer, files, stored, digests, Thresholds(count)) for job in jobs]
        in_parallel([partial(run.one, slot) for run in runs for slot in run.job.slots], count, tick)
    return Written(writer.files, len(slots))


def in_parallel(work: Sequence[Callable[[], None]], threads: int, tick: Tick) -> None:
    """Does all the work; the first failure stops what has not begun and is raised."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: set[Future[None]] = {pool.submit(piece) for piece in work}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                tick(len(done))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Run:
    """A merge on its way to a file; `one` may be called by several threads."""

    job: Job
    writer: TensorWriter
    files: Files
    stored: dict[str, str]
    digests: bool
    thresholds: Thresholds
    own: threading.local = field(default_factory=threading.local)

    def one(self, slot: Slot) -> None:
        """Merges and writes one parameter."""
        name = self.stored[slot.name]
        if not slot.dtype.is_floating_point:
            self.writer.put(name, bytes_of(copied(self.job, slot)))
            return
        if not hasattr(self.own, "desk"):
            self.own.desk = Desk()
        with torch.inference_mode():
            material = Material(
                self.job, slot, self.files, self.own.desk, self.thresholds, digest=self.digests
            )
            for piece in material.pieces():
                result = cast(material.merge(piece), self.job, slot)
                self.writer.put(name, bytes_of(result), piece.start * slot.dtype.itemsize)
            material.finish()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keeps torch from starting threads of its own inside each of ours."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cast(merged: Tensor, job: Job, slot: Slot) -> Tensor:
    """Returns a merged piece in the dtype it is stored in.

    Raises:
        MergeError: it does not fit that dtype.
    """
    result = merged.to(slot.dtype)
    if slot.dtype == torch.float16 and not bool(torch.isfinite(result).all()):
        raise MergeError(
            f"{slot.name}: {job.rule.name} gives values beyond float16 (write dtype bfloat16 or float32)"
        )
    return result


def copied(job: Job, slot: Slot) -> Tensor:
    """Returns a parameter that is not made of real numbers, on which all sources must agree.

    Raises:
        MergeError: they differ.
    """
    first, *others = (source.read(slot.name) for source in job.sources)
    for source, tensor in zip(job.sources[1:], others, strict=True):
        if not torch.equal(tensor, first):
            kind, one = str(slot.dtype).removeprefix("torch."), job.sources[0].name
            raise MergeError(
                f"{slot.name} ({kind}) differs between {one} and {source.name}: it cannot be averaged"
            )
    return first.to(slot.dtype).clone()
