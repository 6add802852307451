"""Runs a rule over every parameter: read, stack, apply, cast, hand over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.checkpoints.writer import Slot, TensorWriter
from plait.errors import MergeError
from plait.merging.draws import uniform
from plait.merging.job import Job, prepare
from plait.merging.parts import TensorSource
from plait.merging.rule import RuleEntry
from plait.merging.thresholds import kth_magnitudes
from plait.progress import track


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
    return ((slot.name, merge_slot(job, slot)) for slot in job.slots)


def write_merged(
    folder: Path,
    sources: Sequence[TensorSource],
    names: Sequence[str],
    rule: RuleEntry,
    *,
    rename: Callable[[str], str] | None = None,
    stem: str = "model",
    max_shard_size: int | str = "5GB",
    **settings: Any,
) -> Written:
    """Writes the merged parameters into `folder` as safetensors, in pieces, and returns what was written.

    Takes the settings of `prepare`: weights, importances, grams, base, options, dtype, seed.

    Args:
        folder: an existing folder, usually that of `atomic_folder`.
        sources: where parameters come from.
        names: which parameters.
        rule: how they are combined.
        rename: from a parameter's name to the name it is stored under.
        stem: the file's name before `.safetensors`.
        max_shard_size: bytes (or `5GB`) above which further files are begun.
        settings: see `prepare`.

    Raises:
        RecipeError: options, weights or inputs that do not suit the rule.
        MergeError: parameters missing, of different shapes, not finite, or integers that differ.
        OutputError: no space, or not writable.
    """
    job = prepare(sources, names, rule, **settings)
    stored = {slot.name: rename(slot.name) if rename else slot.name for slot in job.slots}
    slots = [Slot(stored[slot.name], slot.dtype, slot.shape) for slot in job.slots]
    with TensorWriter(folder, slots, stem=stem, max_shard_size=max_shard_size) as writer:
        for slot in track(job.slots, f"merging by {rule.name}"):
            writer.put_tensor(stored[slot.name], merge_slot(job, slot))
    return Written(writer.files, len(slots))


def merge_slot(job: Job, slot: Slot) -> Tensor:
    """Returns one merged parameter."""
    tensors = [source.read(slot.name) for source in job.sources]
    if not slot.dtype.is_floating_point:
        return copied(job, slot, tensors)
    rule = job.rule_for(slot)
    params = torch.stack([tensor.float() for tensor in tensors])
    inputs = {name: GATHER[name](job, slot, params) for name in rule.inputs}
    with torch.no_grad():
        result = rule.function(**inputs, **job.options_for(rule)).to(slot.dtype)
    if not bool(torch.isfinite(result).all()) or not bool(torch.isfinite(params).all()):
        raise not_finite(job, slot, params)
    return result


def copied(job: Job, slot: Slot, tensors: Sequence[Tensor]) -> Tensor:
    """Returns a parameter that is not made of real numbers, which all sources must agree on."""
    for source, tensor in zip(job.sources[1:], tensors[1:], strict=True):
        if not torch.equal(tensor, tensors[0]):
            raise MergeError(
                f"{slot.name} is {str(slot.dtype).removeprefix('torch.')} and differs between {job.sources[0].name} and "
                f"{source.name}: it cannot be averaged"
            )
    return tensors[0].to(slot.dtype).clone()


def not_finite(job: Job, slot: Slot, params: Tensor) -> MergeError:
    """Returns the error that says which source's parameter is not finite, or that the result overflows."""
    guilty = [s.name for s, p in zip(job.sources, params, strict=True) if not bool(torch.isfinite(p).all())]
    if guilty:
        return MergeError(f"{slot.name} of {', '.join(guilty)} contains NaN or Inf: train or download that source again")
    return MergeError(
        f"{slot.name}: {job.rule.name} gives NaN or Inf although all sources are finite (dtype "
        f"{str(slot.dtype).removeprefix('torch.')} too narrow, or the base or the importances are not finite)"
    )


def _base(job: Job, slot: Slot, params: Tensor) -> Tensor:
    assert job.base is not None
    return job.base.read(slot.name).to(params.dtype)


def importances_of(job: Job, slot: Slot) -> Tensor:
    """Returns the sources' importances of a parameter, stacked; zeros where one of them has no information."""
    assert job.importances is not None
    found = [importance.of(slot.name) for importance in job.importances]
    if any(tensor is None for tensor in found):
        return torch.zeros(len(found), *[1] * len(slot.shape))
    known = [tensor.float() for tensor in found if tensor is not None]
    for source, tensor in zip(job.sources, known, strict=True):
        _check_importance(source.name, slot, tensor)
    return torch.stack(torch.broadcast_tensors(*(t.reshape(*[1] * (len(slot.shape) - t.dim()), *t.shape) for t in known)))


def _check_importance(source: str, slot: Slot, tensor: Tensor) -> None:
    try:
        fits = torch.broadcast_shapes(tensor.shape, slot.shape) == torch.Size(slot.shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise MergeError(f"{slot.name}: importances of {source} are {list(tensor.shape)}, the parameter {list(slot.shape)}")
    if not bool(((tensor >= 0) & torch.isfinite(tensor)).all()):
        raise MergeError(f"{slot.name}: importances of {source} are negative, NaN or Inf: estimate them again")


def _typical(job: Job, slot: Slot, params: Tensor) -> Tensor:
    return importances_of(job, slot).double().flatten(1).mean(1).to(params.dtype)


def grams_of(job: Job, slot: Slot) -> Tensor | None:
    """Returns the sources' Gram matrices of the layer a weight belongs to, or None where one has none."""
    assert job.grams is not None
    found = [gram.of(slot.name) for gram in job.grams]
    known = [tensor.float() for tensor in found if tensor is not None]
    if len(known) < len(found):
        return None
    for source, tensor in zip(job.sources, known, strict=True):
        if tuple(tensor.shape) != (slot.shape[-1],) * 2:
            raise MergeError(f"{slot.name}: the Gram matrix of {source.name} is {list(tensor.shape)}, not {slot.shape[-1]} square")
    return torch.stack(known)


def _draws(job: Job, slot: Slot, params: Tensor) -> Tensor:
    count = params[0].numel()
    drawn = [uniform(job.seed, source.name, slot.name, 0, count) for source in job.sources]
    return torch.stack(drawn).reshape(params.shape)


def _thresholds(job: Job, slot: Slot, params: Tensor) -> Tensor:
    return kth_magnitudes(params - _base(job, slot, params), float(job.options.get("density", 0.2)))


GATHER: dict[str, Callable[[Job, Slot, Tensor], Tensor | None]] = {
    "params": lambda _job, _slot, params: params,
    "weights": lambda job, _slot, _params: job.weights,
    "base": _base,
    "importances": lambda job, slot, _params: importances_of(job, slot),
    "typical": _typical,
    "grams": lambda job, slot, _params: grams_of(job, slot),
    "thresholds": _thresholds,
    "draws": _draws,
}
