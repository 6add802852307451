"""Σ_b (gradient of example b)², straight from pieces: never a batch of weight gradients, never a square too early."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.statistics.lean import only_first
from plait.statistics.pieces import Lookup, Outer, Piece, Vector
from plait.statistics.shapes import Matrix


class Squares:
    """Adds squared pieces to totals, with one scratch matrix per shape that stays in cache from example to example."""

    def __init__(self) -> None:
        """Starts without scratch."""
        self._scratch: dict[torch.Size, Tensor] = {}

    def add(self, total: Tensor, piece: Piece) -> None:
        """Adds Σ_b g_b² to `total`, in place."""
        if isinstance(piece, Vector):
            total += piece.grads.to(total.dtype).square().sum(0)
        elif isinstance(piece, Lookup):
            ids, sums = rows_used(piece, total.shape[0])
            total.index_add_(0, ids, sums.to(total.dtype).square_())
        else:
            self._add_outer(total.view(piece.grads.shape[2], -1), piece)

    def _add_outer(self, total: Matrix, piece: Outer) -> None:
        # No copy unless the model is in half precision, whose squares would underflow.
        inputs, grads = piece.inputs.to(total.dtype), piece.grads.to(total.dtype)
        if only_first(grads):
            # (g xᵀ)² = g² (x²)ᵀ: one product for the whole batch.
            total.addmm_(grads[:, 0].square().T, inputs[:, 0].square())
            return
        scratch = self._scratch.get(total.shape)
        if scratch is None:
            scratch = self._scratch[total.shape] = torch.empty_like(total)
        for x, g in zip(inputs, grads, strict=True):
            torch.mm(g.T, x, out=scratch)
            total.addcmul_(scratch, scratch)


def rows_used(piece: Lookup, rows: int) -> tuple[Tensor, Matrix]:
    """Returns the gradient's rows that are not zero, one for each (example, id): the ids, and the sums over tokens."""
    examples = torch.arange(piece.ids.shape[0], device=piece.ids.device).unsqueeze(1)
    keys, places = torch.unique(piece.ids + rows * examples, return_inverse=True)
    sums = piece.grads.new_zeros(len(keys), piece.grads.shape[2])
    sums.index_add_(0, places.flatten(), piece.grads.flatten(0, 1))
    ids = keys % rows
    if piece.unused is not None:
        sums[ids == piece.unused] = 0.0
    return ids, sums


def sum_of_squares(piece: Piece, like: Tensor) -> Tensor:
    """Returns Σ_b g_b² in the shape of `like`."""
    total = torch.zeros_like(like)
    Squares().add(total, piece)
    return total
