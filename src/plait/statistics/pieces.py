"""Per-example gradients in the cheapest form that determines them: products, vectors, look-ups.

A layer applied to a batch gives each example b a weight gradient that is never needed whole. `Outer` keeps the two
factors of a linear layer's, `Vector` the sum over tokens of a bias's or norm's, `Lookup` the rows an embedding used.
Pieces of one parameter (shared layers, tied weights) are joined before anything is squared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.statistics.shapes import Examples, Grads, Ids, Inputs


@dataclass(frozen=True)
class Outer:
    """∂W_b = grads_bᵀ inputs_b."""

    inputs: Inputs
    grads: Grads


@dataclass(frozen=True)
class Vector:
    """∂w_b = grads_b."""

    grads: Examples


@dataclass(frozen=True)
class Lookup:
    """∂W_b[v] = Σ of grads_b[t] over the tokens t with id v; the row `unused` gets nothing (padding_idx)."""

    ids: Ids
    grads: Grads
    unused: int | None = None


Piece = Outer | Vector | Lookup
Pieces = Iterator[tuple[str, Piece]]
Understand = Callable[[nn.Module, Tensor, Tensor], Pieces]


class NotUnderstoodError(Exception):
    """A layer was used in a way for which no piece is known; the gradients are then taken one example at a time."""


def join(pieces: Sequence[Piece]) -> Piece:
    """Returns the piece whose gradient is the sum of the given ones: tokens are laid end to end, vectors added."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if any(type(piece) is not type(first) for piece in pieces):
        raise NotUnderstoodError("one parameter is used by layers of different kinds")
    if isinstance(first, Vector):
        return Vector(torch.stack([piece.grads for piece in pieces]).sum(0))
    grads = torch.cat([piece.grads for piece in pieces], dim=1)
    if isinstance(first, Lookup):
        return Lookup(torch.cat([p.ids for p in pieces if isinstance(p, Lookup)], dim=1), grads, first.unused)
    return Outer(torch.cat([p.inputs for p in pieces if isinstance(p, Outer)], dim=1), grads)


def _tokens(x: Tensor) -> Inputs:
    return x.unsqueeze(1) if x.dim() == 2 else x


def _over_tokens(g: Tensor) -> Examples:
    return g.sum(1) if g.dim() == 3 else g


def _linear(module: nn.Module, x: Tensor, g: Tensor) -> Pieces:
    yield "weight", Outer(_tokens(x), _tokens(g))
    if module.bias is not None:
        yield "bias", Vector(_over_tokens(g))


def _scaled(module: nn.Module, normal: Tensor, g: Tensor) -> Pieces:
    yield "weight", Vector(_over_tokens(g * normal))
    if getattr(module, "bias", None) is not None:
        yield "bias", Vector(_over_tokens(g))


def _layer_norm(module: nn.Module, x: Tensor, g: Tensor) -> Pieces:
    assert isinstance(module, nn.LayerNorm)
    if module.weight is not None:
        yield from _scaled(module, F.layer_norm(x, module.normalized_shape, eps=module.eps), g)


def _rms_norm(module: nn.Module, x: Tensor, g: Tensor) -> Pieces:
    assert isinstance(module, nn.RMSNorm)
    if module.weight is not None:
        yield from _scaled(module, F.rms_norm(x, tuple(module.normalized_shape), eps=module.eps), g)


def _embedding(module: nn.Module, ids: Tensor, g: Tensor) -> Pieces:
    assert isinstance(module, nn.Embedding)
    if module.scale_grad_by_freq or module.max_norm is not None:
        raise NotUnderstoodError("an embedding that rescales its gradients or rows")
    yield "weight", Lookup(ids.flatten(1), g.flatten(1, -2), module.padding_idx)


def _convolution(module: nn.Module, x: Tensor, g: Tensor) -> Pieces:
    assert isinstance(module, nn.Conv1d)
    if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise NotUnderstoodError("a grouped or specially padded convolution")
    (size,), (padding,), (stride,), (dilation,) = (
        module.kernel_size, module.padding, module.stride, module.dilation,
    )  # fmt: skip
    columns = F.unfold(
        x.unsqueeze(2), (1, size), dilation=(1, dilation), padding=(0, padding), stride=(1, stride)
    )
    yield "weight", Outer(columns.transpose(1, 2), g.transpose(1, 2))
    if module.bias is not None:
        yield "bias", Vector(g.sum(2))


LAYERS: dict[type[nn.Module], Understand] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.Embedding: _embedding,
    nn.Conv1d: _convolution,
}
"""Layers whose per-example gradients are known, by exact class: a subclass may compute something else."""
