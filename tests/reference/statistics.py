"""Statistics as their definitions say: float64, plain autograd, one unpadded example at a time. Never imports plait.

An example is a dictionary of tensors with one row each, without padding. A head is one of sequence, token, qa,
multi_label, regression. Each example gives weighted terms: F = (1/N) Σ_x Σ_terms weight · (∂ term / ∂ parameter)².
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Example = Mapping[str, Tensor]
Term = tuple[float, Tensor]

NODES = {
    "bert": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
    "roberta": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
    "xlm-roberta": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
    "electra": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
    "deberta-v2": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
    "mpnet": ("encoder.layer.{}.attention.attn.o", "encoder.layer.{}.output.dense"),
    "distilbert": ("transformer.layer.{}.attention.out_lin", "transformer.layer.{}.ffn.lin2"),
    "albert": (
        "encoder.albert_layer_groups.{}.albert_layers.0.attention.dense",
        "encoder.albert_layer_groups.{}.albert_layers.0.ffn_output",
    ),
    "modernbert": ("layers.{}.attn.Wo", "layers.{}.mlp.Wo"),
}


def answer(model: nn.Module, example: Example) -> Any:
    """Returns the model's output without labels."""
    hidden = ("labels", "start_positions", "end_positions")
    return model(**{name: value for name, value in example.items() if name not in hidden})


def given(head: str, outputs: Any, example: Example) -> list[Term]:
    """Returns the negative log-likelihood of the labels in the data, summed over labelled tokens."""
    if head == "qa":
        loss = F.cross_entropy(outputs.start_logits, example["start_positions"], reduction="sum")
        loss = loss + F.cross_entropy(outputs.end_logits, example["end_positions"], reduction="sum")
    elif head == "multi_label":
        loss = F.binary_cross_entropy_with_logits(outputs.logits, example["labels"].double(), reduction="sum")
    elif head == "regression":
        loss = 0.5 * (outputs.logits.flatten() - example["labels"].double()).square().sum()
    else:
        logits = outputs.logits.flatten(0, -2)
        loss = F.cross_entropy(logits, example["labels"].flatten(), ignore_index=-100, reduction="sum")
    return [(1.0, loss)]


def categorical(logits: Tensor) -> list[Term]:
    """Returns −log p(y) for every y, weighted by p(y)."""
    logs = logits.log_softmax(-1)
    return [(float(value.detach().exp()), -value) for value in logs]


def exact(head: str, outputs: Any, example: Example) -> list[Term]:
    """Returns the terms of the expectation over the model's own distribution.

    Independent variables add up one by one: their scores have mean zero, so products of two of them vanish.
    """
    if head == "qa":
        return [*categorical(outputs.start_logits[0]), *categorical(outputs.end_logits[0])]
    if head == "token":
        counted = example["labels"][0] != -100
        return [term for row in outputs.logits[0][counted] for term in categorical(row)]
    if head == "multi_label":
        # A yes-or-no label is a choice between the logits z and 0.
        return [t for z in outputs.logits[0] for t in categorical(torch.stack([z, torch.zeros_like(z)]))]
    if head == "regression":
        # ∂(½(z − y)²)/∂z = z − y has variance 1 under the model.
        return [(1.0, z) for z in outputs.logits[0]]
    return categorical(outputs.logits[0])


TERMS: dict[str, Callable[[str, Any, Example], list[Term]]] = {"given": given, "exact": exact}


def fisher(
    model: nn.Module, head: str, some: Sequence[Example], by: Mapping[str, Tensor], labels: str = "given"
) -> dict[str, Tensor]:
    """Returns the diagonal of the Fisher information by any tensors the outputs depend on."""
    totals = {name: torch.zeros_like(value) for name, value in by.items()}
    for example in some:
        for weight, term in TERMS[labels](head, answer(model, example), example):
            gradients = torch.autograd.grad(term, list(by.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(by, gradients, strict=True):
                if gradient is not None:
                    totals[name] += weight * gradient.square() / len(some)
    return totals


def diagonal(
    model: nn.Module, head: str, some: Sequence[Example], labels: str = "given"
) -> dict[str, Tensor]:
    """Returns the Fisher information of every parameter, by its full name."""
    return {
        n: v.detach() for n, v in fisher(model, head, some, dict(model.named_parameters()), labels).items()
    }


def masks(
    body: nn.Module, patterns: tuple[str, str], layers: int, heads: int
) -> tuple[dict[str, Tensor], list[Any]]:
    """Returns masks of ones, and the hooks that multiply them into the inputs of the two projections of each layer."""
    found: dict[str, Tensor] = {}
    hooks = []
    for layer in range(layers):
        for kind, pattern in zip(("heads", "neurons"), patterns, strict=True):
            module = body.get_submodule(pattern.format(layer))
            nodes = heads if kind == "heads" else module.weight.shape[1]
            mask = torch.ones(nodes, dtype=torch.float64, requires_grad=True)
            found[f"{kind}.{layer}"] = mask

            def multiply(_: nn.Module, inputs: tuple[Tensor, ...], mask: Tensor = mask) -> tuple[Tensor, ...]:
                return (inputs[0] * mask.repeat_interleave(inputs[0].shape[-1] // len(mask)),)

            hooks.append(module.register_forward_pre_hook(multiply))
    return found, hooks


def mask_nodes(
    model: nn.Module, family: str, head: str, some: Sequence[Example], labels: str = "given"
) -> dict[str, Tensor]:
    """Returns the Fisher information of masks that multiply heads and neurons: `heads` [L, h], `neurons` [L, I]."""
    heads = model.config.num_attention_heads
    layers = 1 if family == "albert" else model.config.num_hidden_layers
    found, hooks = masks(model.base_model, NODES[family], layers, heads)
    values = fisher(model, head, some, found, labels)
    for hook in hooks:
        hook.remove()
    return {
        kind: torch.stack([values[f"{kind}.{layer}"] for layer in range(layers)])
        for kind in ("heads", "neurons")
    }


def block_means(diagonal: Tensor, blocks: tuple[int, int, int] | None, axis: int) -> Tensor:
    """Returns a diagonal with each entry replaced by the mean of its block.

    `blocks` = (parts, nodes, size): along `axis` lie `parts` runs of `nodes` blocks of `size` entries; None: one block.
    """
    if blocks is None:
        return torch.full_like(diagonal, float(diagonal.mean()))
    result = torch.empty_like(diagonal)
    _, _, size = blocks
    for start in range(0, diagonal.shape[axis], size):
        window = [slice(None)] * diagonal.dim()
        window[axis] = slice(start, start + size)
        result[tuple(window)] = diagonal[tuple(window)].mean()
    return result


def gram(model: nn.Module, some: Sequence[Example]) -> dict[str, Tensor]:
    """Returns XᵀX / rows of what enters each linear layer, by the full name of its weight."""
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def add(name: str, inputs: Tensor) -> None:
        for row in inputs.detach().reshape(-1, inputs.shape[-1]):
            sums[name] = sums.get(name, torch.zeros(())) + torch.outer(row, row)
            rows[name] = rows.get(name, 0) + 1

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=f"{name}.weight": add(name, inputs[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    for example in some:
        answer(model, example)
    for hook in hooks:
        hook.remove()
    return {name: total / rows[name] for name, total in sums.items()}


def batch_mean_squares(model: nn.Module, some: Sequence[Example]) -> dict[str, Tensor]:
    """Returns Σ over batches of the squared gradient of the model's own mean loss, as published programs compute it."""
    totals = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for batch in some:
        gradients = torch.autograd.grad(model(**batch).loss, list(model.parameters()), allow_unused=True)
        for name, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                totals[name] += gradient.square()
    return totals


def paper_weights(heads: Tensor, neurons: Tensor, width: int, layer: int | None, part: str) -> Tensor:
    """Returns the weights of one tensor of BERT as the authors' program spreads mask nodes: a column or one number."""
    if layer is None:
        return torch.stack([h.mean() + n.mean() for h, n in zip(heads, neurons, strict=True)]).mean()
    if part in {"query", "key"}:
        return torch.tensor([float(heads[layer, row // width]) for row in range(width * heads.shape[1])])
    if part == "intermediate":
        return neurons[layer]
    return (heads if part in {"value", "attention"} else neurons)[layer].mean()
