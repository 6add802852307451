"""The Fisher information of mask nodes: one number per attention head and per FFN neuron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plait.encoders.topology import check_nodes, topology
from plait.processes import summed
from plait.statistics.backward import Objective, backward_passes
from plait.statistics.batch import Batch
from plait.statistics.estimator import ESTIMATORS
from plait.statistics.first_token import reads_first_token
from plait.statistics.shapes import Inputs


class _Nodes:
    """The mask nodes in front of one linear layer: scores per example, and their running squares."""

    def __init__(self, module: nn.Module, nodes: int, leaves: list[Tensor], groups: int = 0) -> None:
        self.total = torch.zeros(nodes, dtype=torch.float64)
        self.shared = torch.zeros(groups, dtype=torch.float64)
        self._nodes = nodes
        self._leaves = leaves
        self._scores: Tensor | None = None
        self.handle = module.register_forward_pre_hook(self._forward)

    def _forward(self, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        inputs: Tensor = arguments[0]
        starts = not inputs.requires_grad
        if starts:
            # The first node of the model: no mask lies below it, so the graph starts here.
            inputs = inputs.detach().requires_grad_()
            self._leaves.append(inputs)
        values = inputs.detach()
        inputs.register_hook(lambda gradient: self._backward(values, gradient))
        return (inputs, *arguments[1:]) if starts else None

    @torch.no_grad()
    def _backward(self, values: Tensor, gradient: Tensor) -> None:
        scores = token_sums(values, gradient).unflatten(1, (self._nodes, -1)).sum(2)
        # A layer that is applied again shares its nodes: add before squaring.
        self._scores = scores if self._scores is None else self._scores + scores

    def finish_pass(self, *, whole: bool) -> None:
        """Squares what one backward pass brought, per example or (`whole`) of the batch's sum."""
        if self._scores is not None:
            scores = self._scores.double().cpu()
            scores = scores.sum(0, keepdim=True) if whole else scores
            self.total += scores.square().sum(0)
            if len(self.shared):
                # One mask on what several heads share has the sum of their derivatives: add before squaring.
                self.shared += scores.unflatten(1, (len(self.shared), -1)).sum(2).square().sum(0)
            self._scores = None


def token_sums(x: Inputs, g: Inputs) -> Tensor:
    """Returns Σ_t x_t g_t per example: [B, i], at least in float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, g = x.to(dtype), g.to(dtype)
    if reads_first_token(g):
        return x[:, 0] * g[:, 0]
    # Example by example, so that the products never leave the cache.
    products = torch.empty_like(x[0])
    return torch.stack([torch.mul(one, other, out=products).sum(0) for one, other in zip(x, g, strict=True)])


class MaskNodes:
    """Scores of all mask nodes; weights stay frozen, only the gradients of activations are computed."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        """Hooks the inputs of the attention output and second FFN projections."""
        self._model, self._objective = model, objective
        self._leaves: list[Tensor] = []
        table = topology(model.config)
        check_nodes(table)
        body = model.base_model
        groups = table.groups if table.groups != table.heads else 0
        self._heads = [
            _Nodes(body.get_submodule(path), table.heads, self._leaves, groups)
            for path in table.attention_outputs()
        ]
        self._neurons = [
            _Nodes(body.get_submodule(table.ffn_output(layer)), table.neurons, self._leaves)
            for layer in range(table.layers)
        ]

    def see(self, batch: Batch) -> None:
        """Adds a batch."""
        whole = self._objective.per == "batch"
        self._leaves.clear()
        for _ in backward_passes(self._model, batch, self._objective, self._leaves):
            for nodes in (*self._heads, *self._neurons):
                nodes.finish_pass(whole=whole)
        self._leaves.clear()

    def pool(self) -> None:
        """Adds up the sums of all processes."""
        for nodes in (*self._heads, *self._neurons):
            nodes.total = summed(nodes.total)
        for nodes in self._heads:
            nodes.shared = summed(nodes.shared)

    def result(self, examples: int) -> Mapping[str, Tensor]:
        """Returns the mean squares: `heads` [L, h], `neurons` [L, I], and `groups` [L, g] of shared keys and values."""
        dtype = torch.promote_types(self._model.dtype, torch.float32)
        totals = {
            "heads": [nodes.total for nodes in self._heads],
            "neurons": [nodes.total for nodes in self._neurons],
            "groups": [nodes.shared for nodes in self._heads if len(nodes.shared)],
        }
        return {name: (torch.stack(rows) / examples).to(dtype) for name, rows in totals.items() if rows}

    def close(self) -> None:
        """Takes the hooks off the model."""
        for nodes in (*self._heads, *self._neurons):
            nodes.handle.remove()


@ESTIMATORS.register(
    "mask_nodes",
    needs=("data",),
    paper="arXiv:2403.09891",
    when="Fisher merges: the smallest file, one number a head and neuron.",
)
def mask_nodes(model: PreTrainedModel, objective: Objective) -> MaskNodes:
    """Returns the Fisher information of masks on attention heads and FFN neurons.

    F = (1/N) Σ_b s_b²,  s_head = Σ_t Σ_{k in head} x_tk ∂ℓ/∂x_tk,  s_neuron = Σ_t a_t ∂ℓ/∂a_t   (section 3), where x
    enters the attention output projection and a the second FFN projection: the derivative of the loss by a mask of
    ones on them, summed over tokens before squaring. Heads with common keys and values (grouped queries) also give one
    number a group, F = (1/N) Σ_b (Σ_{head in group} s_b)²: that of a mask on what they share.

    Differs from the authors' program, which squares the gradient of a batch's mean loss: per batch does that.
    """
    return MaskNodes(model, objective)
