"""Runs a rule over every parameter: gather its inputs, apply, cast, write; in chunks, in parallel, straight to file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from plait.checkpoints.writer import Slot, TensorWriter, bytes_of
from plait.errors import MergeError
from plait.merging.chunks import (
    Chunk,
    ChunkReader,
    Files,
    StackBuffer,
    TensorSource,
    flat_chunks,
    row_chunks,
    whole,
)
from plait.merging.job import Job, prepare
from plait.merging.rule import Law, RuleEntry, laws
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


def _merged(job: Job, slot: Slot, files: Files, thresholds: Thresholds) -> Tensor:
    if not slot.dtype.is_floating_point:
        return copied(job, slot)
    with torch.no_grad():
        merged = RuleInputs(job, slot, files, StackBuffer(), thresholds, digest=False).merge(whole(slot))
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
    told: dict[str, Any] = {"stem": stem, "max_shard_size": max_shard_size, "threads": threads, "digests": digests}
    return write_alike([folder], [[job] for job in jobs], rename=rename, **told)[0]


def write_alike(
    folders: Sequence[Path],
    merges: Sequence[Sequence[Job]],
    *,
    rename: Callable[[str], str] | None = None,
    stem: str = "model",
    max_shard_size: int | str = "5GB",
    threads: int | None = None,
    digests: bool = True,
) -> list[Written]:
    """Writes several checkpoints in one pass over the sources and returns what was written.

    Each entry of `merges` holds one merge per folder. They differ in options and weights alone, so that every piece of
    the sources is read once and merged with each; results are those of `write_jobs` folder by folder.

    Raises:
        MergeError: parameters that are not finite, or integers that differ.
        OutputError: no space, or not writable.
    """
    firsts = [alike[0] for alike in merges]
    stored = {slot.name: rename(slot.name) if rename else slot.name for job in firsts for slot in job.slots}
    slots = [Slot(stored[slot.name], slot.dtype, slot.shape) for job in firsts for slot in job.slots]
    count = threads or min(THREADS, os.cpu_count() or 1)
    what = "merging by " + ", ".join(dict.fromkeys(job.rule.name for job in firsts))
    with ExitStack() as stack:
        writers = [
            stack.enter_context(TensorWriter(folder, slots, stem=stem, max_shard_size=max_shard_size))
            for folder in folders
        ]
        files, _ = stack.enter_context(Files()), stack.enter_context(one_torch_thread())
        tick = stack.enter_context(task(what, len(slots)))
        runs = [Run(alike, writers, files, stored, digests, [Thresholds(count) for _ in alike]) for alike in merges]
        in_parallel([partial(run.one, slot) for run in runs for slot in run.jobs[0].slots], count, tick)
    return [Written(writer.files, len(slots)) for writer in writers]


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
    """Merges of the same parameters on their way to a file each; `one` may be called by several threads."""

    jobs: Sequence[Job]
    writers: Sequence[TensorWriter]
    files: Files
    stored: dict[str, str]
    digests: bool
    thresholds: Sequence[Thresholds]
    own: threading.local = field(default_factory=threading.local)

    def one(self, slot: Slot) -> None:
        """Merges and writes one parameter."""
        name = self.stored[slot.name]
        if not slot.dtype.is_floating_point:
            data = bytes_of(copied(self.jobs[0], slot))
            for writer in self.writers:
                writer.put(name, data)
            return
        if not hasattr(self.own, "desk"):
            self.own.desk = StackBuffer()
        with torch.inference_mode():
            every = [
                RuleInputs(job, slot, self.files, self.own.desk, thresholds, digest=self.digests and at == 0)
                for at, (job, thresholds) in enumerate(zip(self.jobs, self.thresholds, strict=True))
            ]
            for piece in every[0].pieces():
                everyone = every[0].read(piece)
                for material, writer in zip(every, self.writers, strict=True):
                    result = cast(material.merged(everyone, piece), material.job, slot)
                    writer.put(name, bytes_of(result), piece.start * slot.dtype.itemsize)
            every[0].finish()


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


Pick = Callable[[Chunk, Tensor, Tensor | None], Any]
"""What an input is for a piece, given the stacked sources and the base."""


class RuleInputs:
    """Everything that one parameter's rule needs; `pieces` says how it may be cut."""

    def __init__(
        self, job: Job, slot: Slot, files: Files, desk: StackBuffer, thresholds: Thresholds, *, digest: bool
    ) -> None:
        """Looks up importances, Gram matrices and thresholds of the parameter."""
        self.job, self.slot, self.desk = job, slot, desk
        self.rule: RuleEntry = job.rule_for(slot)
        self.feeds = [ChunkReader(files, source, slot.name, digest=digest) for source in job.sources]
        self._based = "base" in self.rule.inputs
        if self._based and job.base is not None:
            self.feeds.append(ChunkReader(files, job.base, slot.name, digest=digest))
        # What is stored as [in, out] is shown to rules that tell inputs from outputs as they expect it.
        self._turned = Law.ELEMENTWISE not in laws(self.rule) and job.layout.is_transposed(slot.name)
        self._importances = importances_of(job, slot) if "importances" in self.rule.inputs else []
        self._picks = {name: self._pick(name, files, thresholds) for name in self.rule.inputs}

    def _pick(self, name: str, files: Files, thresholds: Thresholds) -> Pick:
        job, slot = self.job, self.slot
        fixed: dict[str, Callable[[], Any]] = {
            "weights": lambda: job.weights,
            "typical": lambda: torch.tensor([mean_of(tensor) for tensor in self._importances]),
            "grams": lambda: grams_of(job, slot),
            "crosses": lambda: None,  # known in forward order alone, see merging/forward
            "thresholds": lambda: thresholds.of(job, slot, files),
            "ceilings": lambda: thresholds.of(job, slot, files, "outliers"),
            "depth": lambda: job.layout.depth(slot.name),
        }
        if name in fixed:
            value = fixed[name]()
            return lambda _piece, _params, _base: value
        moving: dict[str, Pick] = {
            "params": lambda _piece, params, _base: params,
            "base": lambda _piece, _params, base: base,
            "importances": lambda piece, _params, _base: importance_piece(self._importances, slot, piece),
            "draws": lambda piece, params, _base: draws_of(job, slot, piece).view(params.shape),
        }
        return moving[name]

    def pieces(self) -> Iterator[Chunk]:
        """Yields the pieces in which the rule may see the parameter."""
        if Law.ROWWISE in laws(self.rule) and len(self.slot.shape) > 1 and not self._turned:
            return row_chunks(self.slot)
        if not in_pieces(self.job, self.slot):
            return iter([whole(self.slot)])
        dense = all(
            tensor.numel() == 1 or tuple(tensor.shape) == self.slot.shape for tensor in self._importances
        )
        return flat_chunks(self.slot) if dense else row_chunks(self.slot)

    def merge(self, piece: Chunk) -> Tensor:
        """Returns the merged piece, in float32.

        Raises:
            MergeError: a source, or the result, is not finite.
        """
        return self.merged(self.read(piece), piece)

    def read(self, piece: Chunk) -> Tensor:
        """Returns the piece of all sources, and of the base where the rule needs it, stacked."""
        return self.desk.stack(self.feeds, piece)

    def merged(self, everyone: Tensor, piece: Chunk) -> Tensor:
        """Returns the merged piece of what `read` gave, in float32; it can be merged again with other options.

        Raises:
            MergeError: a source, or the result, is not finite.
        """
        params, base = (everyone[:-1], everyone[-1]) if self._based else (everyone, None)
        # Reading the result tells about the sources too when the rule lets nothing that is not finite pass.
        if Law.PROPAGATES not in laws(self.rule) and not is_finite(everyone):
            raise not_finite(self.job, self.slot, params, base)
        if self._turned:
            params, base = params.mT.contiguous(), None if base is None else base.mT.contiguous()
        inputs = {name: pick(piece, params, base) for name, pick in self._picks.items()}
        result: Tensor = self.rule.function(**inputs, **self.job.options_for(self.rule))
        result = result.mT.contiguous() if self._turned else result
        if not is_finite(result):
            raise not_finite(self.job, self.slot, params, base)
        return result

    def finish(self) -> None:
        """Hands the hashes of what was read to the sources."""
        for feed in self.feeds:
            feed.finish()


def in_pieces(job: Job, slot: Slot) -> bool:
    """Returns whether a rule may see a parameter some entries or rows at a time, so that its size takes no memory."""
    claimed = laws(job.rule_for(slot))
    rows = Law.ROWWISE in claimed and len(slot.shape) > 1 and not job.layout.is_transposed(slot.name)
    return rows or Law.ELEMENTWISE in claimed


def is_finite(tensor: Tensor) -> bool:
    """Returns whether all entries are finite; the sum, which is quick, decides unless it overflows."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def not_finite(job: Job, slot: Slot, params: Tensor, base: Tensor | None) -> MergeError:
    """Returns the error that says whose parameter is not finite, or that the result overflows."""
    owners = [source.name for source in job.sources]
    guilty = [
        name for name, tensor in zip(owners, params, strict=True) if not bool(torch.isfinite(tensor).all())
    ]
    if base is not None and job.base is not None and not bool(torch.isfinite(base).all()):
        guilty.append(job.base.name)
    if guilty:
        return MergeError(
            f"{slot.name} of {', '.join(guilty)} contains NaN or Inf: train or download it again"
        )
    return MergeError(f"{slot.name}: {job.rule.name} gives NaN or Inf although all sources are finite")


def importances_of(job: Job, slot: Slot) -> list[Tensor]:
    """Returns the sources' importances of a parameter, each with as many axes as it; zeros where one has none.

    Raises:
        MergeError: importances that do not fit the parameter.
    """
    assert job.importances is not None
    found = [importance.of(slot.name) for importance in job.importances]
    # A source without a say needs no importance.
    nothing = torch.zeros([1] * len(slot.shape))
    said = [
        nothing if tensor is None and not weight else tensor
        for tensor, weight in zip(found, job.weights, strict=True)
    ]
    known = [tensor for tensor in said if tensor is not None]
    if len(known) < len(found):
        return [nothing for _ in found]
    for source, tensor in zip(job.sources, known, strict=True):
        if not _fits(tensor, slot.shape):
            found_shape, wanted = list(tensor.shape), list(slot.shape)
            raise MergeError(
                f"{slot.name}: importances of {source.name} are {found_shape}, the parameter {wanted}"
            )
    return [tensor.reshape([1] * (len(slot.shape) - tensor.dim()) + list(tensor.shape)) for tensor in known]


def _fits(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    if tensor.dim() > len(shape):
        return False
    tail = shape[len(shape) - tensor.dim() :]
    return all(have in (1, want) for have, want in zip(tensor.shape, tail, strict=True))


def mean_of(tensor: Tensor) -> float:
    """Returns the mean in float64, a piece at a time so that nothing large is copied."""
    parts = tensor.reshape(-1).split(2**18)
    return sum(float(part.double().sum()) for part in parts) / max(tensor.numel(), 1)


def importance_piece(importances: Sequence[Tensor], slot: Slot, piece: Chunk) -> Tensor:
    """Returns the importances of a piece, stacked; they broadcast to the piece.

    Raises:
        MergeError: importances that are negative or not finite.
    """
    cut = torch.broadcast_tensors(*(_cut(tensor, slot, piece) for tensor in importances))
    stacked = torch.stack([tensor.float() for tensor in cut])
    if not is_finite(stacked) or bool((stacked < 0).any()):
        raise MergeError(f"{slot.name}: importances are negative, NaN or Inf (estimate them again)")
    return stacked


def _cut(tensor: Tensor, slot: Slot, piece: Chunk) -> Tensor:
    if piece.rows is None:
        return tensor.reshape(-1)[piece.start : piece.stop] if tensor.numel() > 1 else tensor.reshape(1)
    return tensor[piece.rows] if slot.shape and tensor.shape[0] == slot.shape[0] else tensor


def grams_of(job: Job, slot: Slot) -> Tensor | None:
    """Returns the sources' Gram matrices of the layer that a weight belongs to, or None where one has none.

    Raises:
        MergeError: a Gram matrix that does not fit the weight.
    """
    assert job.grams is not None
    found = [gram.of(slot.name) for gram in job.grams]
    known = [tensor.float() for tensor in found if tensor is not None]
    if len(known) < len(found):
        return None
    for source, tensor in zip(job.sources, known, strict=True):
        inputs = slot.shape[0 if job.layout.is_transposed(slot.name) else -1]
        if len(slot.shape) != 2 or tuple(tensor.shape) != (inputs,) * 2:
            found_shape, wanted = list(tensor.shape), list(slot.shape)
            raise MergeError(
                f"{slot.name}: the Gram matrix of {source.name} is {found_shape}, the weight {wanted}"
            )
        if not is_finite(tensor):
            raise MergeError(
                f"{slot.name}: the Gram matrix of {source.name} contains NaN or Inf (estimate it again)"
            )
    return torch.stack(known)


def draws_of(job: Job, slot: Slot, piece: Chunk) -> Tensor:
    """Returns uniform numbers per source for a piece."""
    return torch.stack([uniform(job.seed, s.name, slot.name, piece.start, piece.size) for s in job.sources])


BLOCK = 8
"""float32 numbers in one Philox block of four 64-bit words."""


def uniform(seed: int, source: str, parameter: str, start: int, count: int) -> Tensor:
    """Returns the numbers in [0, 1) of entries `start` to `start + count` of a flat parameter.

    Philox is counter-based: any piece can be drawn by itself and equals that piece of the whole.
    """
    key = xxhash.xxh3_128_intdigest(f"{seed}\0{source}\0{parameter}".encode())
    skip = start % BLOCK
    stream = np.random.Generator(np.random.Philox(key=key, counter=start // BLOCK))
    return torch.from_numpy(stream.random(skip + count, dtype=np.float32)[skip:])
