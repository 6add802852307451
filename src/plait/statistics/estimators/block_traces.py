"""Traces of the Fisher information over the blocks of heads and neurons: the diagonal's sums without the diagonal."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plait.encoders.topology import Axis, Place, topology
from plait.processes import summed
from plait.statistics.backward import Objective
from plait.statistics.batch import Batch
from plait.statistics.estimator import ESTIMATORS, body_name
from plait.statistics.first_token import reads_first_token
from plait.statistics.per_example import ExampleGradients, Factor, Lookup, Outer, Squares, Tied, rows_used


class BlockTraces:
    """Running sums of squared per-example gradients, along the axis whose entries belong to heads or neurons."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        """Finds the blocks of every parameter."""
        self._model = model
        self._squares = Squares()
        self._dtype = torch.promote_types(model.dtype, torch.float32)
        self._gradients = ExampleGradients(model, objective, self._add)
        self._places = _places(model)
        self._totals = {
            name: torch.zeros(_kept(value, self._places[name]), dtype=torch.float64, device=value.device)
            for name, value in model.named_parameters()
        }

    def _add(self, name: str, piece: Factor) -> None:
        total, kept = self._totals[name], _axis(self._places[name])
        total += self._traces(self._gradients.parameters[name].shape, piece, kept).reshape(total.shape)

    def _traces(self, shape: torch.Size, piece: Factor, kept: int | None) -> Tensor:
        """Returns Σ_b g_b² summed over all axes but `kept`."""
        if isinstance(piece, Lookup) and kept is None:
            return rows_used(piece, shape[0])[1].double().square().sum()
        if isinstance(piece, Tied) and kept is None:
            return tied_trace(piece)
        if isinstance(piece, Outer) and (traces := outer_traces(piece, kept)) is not None:
            return traces
        squares = torch.zeros(shape, dtype=self._dtype, device=piece.grads.device)
        self._squares.add(squares, piece)
        others = [axis for axis in range(len(shape)) if axis != kept]
        return squares.sum(others).double() if others else squares

    def see(self, batch: Batch) -> None:
        """Adds a batch."""
        self._gradients.see(batch)

    def pool(self) -> None:
        """Adds up the sums of all processes."""
        for total in self._totals.values():
            total.copy_(summed(total))

    def result(self, examples: int) -> Mapping[str, Tensor]:
        """Returns the mean of the diagonal inside each block, spread over the block's entries."""
        shapes = {name: value.shape for name, value in self._gradients.parameters.items()}
        return {
            body_name(self._model, name): self._spread(
                name, total * (total.numel() / shapes[name].numel()) / examples
            )
            for name, total in self._totals.items()
        }

    def _spread(self, name: str, means: Tensor) -> Tensor:
        place = self._places[name]
        axis = place and (place.rows or place.columns)
        return (_within_blocks(means, axis) if axis else means).to(self._dtype)

    def close(self) -> None:
        """Takes the hooks off the model."""
        self._gradients.close()


def _places(model: PreTrainedModel) -> dict[str, Place | None]:
    """Returns the place of every parameter of the body; None for the head, each tensor of which is one block."""
    table = topology(model.config)
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    names = [name for name, _ in model.named_parameters()]
    return {
        name: table.place(name.removeprefix(prefix)) if name.startswith(prefix) else None for name in names
    }


def _axis(place: Place | None) -> int | None:
    if place is None or (place.rows is None and place.columns is None):
        return None
    return 0 if place.rows is not None else 1


def _kept(value: Tensor, place: Place | None) -> list[int]:
    kept = _axis(place)
    return [size if axis == kept else 1 for axis, size in enumerate(value.shape)]


def _within_blocks(means: Tensor, axis: Axis) -> Tensor:
    """Returns each entry replaced by the mean over its block: one head or neuron of one fused projection."""
    blocks = means.reshape(axis.blocks * axis.count, axis.size)
    return blocks.mean(1, keepdim=True).expand_as(blocks).reshape(means.shape)


def outer_traces(piece: Outer, kept: int | None) -> Tensor | None:
    """Returns Σ_b of squared entries of g_bᵀ x_b, summed over all axes but `kept`, without forming the product.

    Row i: Σ_b g_{:,i}ᵀ (X Xᵀ) g_{:,i}; column j: Σ_b x_{:,j}ᵀ (G Gᵀ) x_{:,j}; neither: Σ_b ⟨X Xᵀ, G Gᵀ⟩.
    None where forming it is cheaper: with more tokens than that saves.
    """
    dtype = torch.promote_types(piece.grads.dtype, torch.float32)
    x, g = piece.inputs.to(dtype), piece.grads.to(dtype)
    if reads_first_token(g):
        x, g = x[:, :1], g[:, :1]
    tokens, columns, rows = x.shape[1], x.shape[2], g.shape[2]
    if tokens * (columns + rows) > columns * rows:
        return None
    if kept is None:
        return ((x @ x.mT) * (g @ g.mT)).sum((1, 2)).double().sum()
    kernel, sides = (x @ x.mT, g) if kept == 0 else (g @ g.mT, x)
    return (sides * (kernel @ sides)).sum(1).double().sum(0)


def tied_trace(piece: Tied) -> Tensor:
    """Returns Σ_b of all squared entries of g_bᵀ x_b + E_b, E_b the look-ups' gradient, without forming any.

    ‖gᵀx‖² + 2 Σ_t ⟨(gᵀx)[id_t], l_t⟩ + ‖E‖², where ⟨(gᵀx)[id_t], l_t⟩ = Σ_s g_s[id_t] ⟨x_s, l_t⟩.
    """
    dtype = torch.promote_types(piece.grads.dtype, torch.float32)
    x, g = piece.outer.inputs.to(dtype), piece.outer.grads.to(dtype)
    lookup = piece.lookup
    looked = lookup.grads.to(dtype)
    if lookup.unused is not None:
        looked = looked * (lookup.ids != lookup.unused).unsqueeze(-1)
    alone = ((x @ x.mT) * (g @ g.mT)).sum((1, 2)).double().sum()
    at = g.gather(2, lookup.ids.unsqueeze(1).expand(-1, g.shape[1], -1))
    both = (at * (x @ looked.mT)).sum((1, 2)).double().sum()
    rows = rows_used(lookup, g.shape[2])[1].to(dtype).double().square().sum()
    return alone + 2 * both + rows


@ESTIMATORS.register(
    "block_traces",
    needs=("data",),
    when="Fisher merges: the most accurate on average, one number a block.",
)
def block_traces(model: PreTrainedModel, objective: Objective) -> BlockTraces:
    """Returns the mean of the exact Fisher diagonal inside each block: a head's rows or columns, a neuron's, a tensor.

    row i: (1/N) Σ_b g_{:,i}ᵀ (X Xᵀ) g_{:,i}, divided by the entries of the row and averaged over the rows of a block.
    The sums are exact and the diagonal is never formed.
    """
    return BlockTraces(model, objective)
