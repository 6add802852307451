"""Gathers what a rule asks for, by name, for one piece of one parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from plait.checkpoints.writer import Slot
from plait.errors import MergeError
from plait.merging.draws import uniform
from plait.merging.job import Job
from plait.merging.pieces import Desk, Feed, Files, Piece, flat_pieces, row_pieces, whole
from plait.merging.rule import Law, RuleEntry, laws
from plait.merging.thresholds import Thresholds

Pick = Callable[[Piece, Tensor, Tensor | None], Any]
"""What an input is for a piece, given the stacked sources and the base."""


class Material:
    """Everything that one parameter's rule needs; `pieces` says how it may be cut."""

    def __init__(
        self, job: Job, slot: Slot, files: Files, desk: Desk, thresholds: Thresholds, *, digest: bool
    ) -> None:
        """Looks up importances, Gram matrices and thresholds of the parameter."""
        self.job, self.slot, self.desk = job, slot, desk
        self.rule: RuleEntry = job.rule_for(slot)
        self.feeds = [Feed(files, source, slot.name, digest=digest) for source in job.sources]
        self._based = "base" in self.rule.inputs
        base = [Feed(files, job.base, slot.name)] if self._based and job.base is not None else []
        self._all = [*self.feeds, *base]
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

    def pieces(self) -> Iterator[Piece]:
        """Yields the pieces in which the rule may see the parameter."""
        if Law.ROWWISE in laws(self.rule) and len(self.slot.shape) > 1:
            return row_pieces(self.slot)
        if Law.ELEMENTWISE not in laws(self.rule):
            return iter([whole(self.slot)])
        dense = all(
            tensor.numel() == 1 or tuple(tensor.shape) == self.slot.shape for tensor in self._importances
        )
        return flat_pieces(self.slot) if dense else row_pieces(self.slot)

    def merge(self, piece: Piece) -> Tensor:
        """Returns the merged piece, in float32.

        Raises:
            MergeError: a source, or the result, is not finite.
        """
        everyone = self.desk.stack(self._all, piece)
        params, base = (everyone[:-1], everyone[-1]) if self._based else (everyone, None)
        # Reading the result tells about the sources too when the rule lets nothing that is not finite pass.
        if Law.PROPAGATES not in laws(self.rule) and not is_finite(everyone):
            raise not_finite(self.job, self.slot, params, base)
        inputs = {name: pick(piece, params, base) for name, pick in self._picks.items()}
        result: Tensor = self.rule.function(**inputs, **self.job.options_for(self.rule))
        if not is_finite(result):
            raise not_finite(self.job, self.slot, params, base)
        return result

    def finish(self) -> None:
        """Hands the hashes of what was read to the sources."""
        for feed in self.feeds:
            feed.finish()


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


def importance_piece(importances: Sequence[Tensor], slot: Slot, piece: Piece) -> Tensor:
    """Returns the importances of a piece, stacked; they broadcast to the piece.

    Raises:
        MergeError: importances that are negative or not finite.
    """
    cut = torch.broadcast_tensors(*(_cut(tensor, slot, piece) for tensor in importances))
    stacked = torch.stack([tensor.float() for tensor in cut])
    if not is_finite(stacked) or bool((stacked < 0).any()):
        raise MergeError(f"{slot.name}: importances are negative, NaN or Inf (estimate them again)")
    return stacked


def _cut(tensor: Tensor, slot: Slot, piece: Piece) -> Tensor:
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
        if len(slot.shape) != 2 or tuple(tensor.shape) != (slot.shape[1],) * 2:
            found_shape, wanted = list(tensor.shape), list(slot.shape)
            raise MergeError(
                f"{slot.name}: the Gram matrix of {source.name} is {found_shape}, the weight {wanted}"
            )
        if not is_finite(tensor):
            raise MergeError(
                f"{slot.name}: the Gram matrix of {source.name} contains NaN or Inf (estimate it again)"
            )
    return torch.stack(known)


def draws_of(job: Job, slot: Slot, piece: Piece) -> Tensor:
    """Returns uniform numbers per source for a piece."""
    return torch.stack([uniform(job.seed, s.name, slot.name, piece.start, piece.size) for s in job.sources])
