"""Ensembles once more: one model, one member, one example at a time, from the formula. Slow, obvious, on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def without_padding(batch: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    length = int(batch["attention_mask"][row].sum())
    return {name: values[row : row + 1, :length] for name, values in batch.items()}


def separate_passes(models: Sequence[Any], batch: Mapping[str, Tensor]) -> list[list[Tensor]]:
    """Logits of each member's ordinary model for each example, unpadded: [M][B] of [C] or [T, C]."""
    return [
        [model(**without_padding(batch, row)).logits[0] for row in range(len(batch["input_ids"]))]
        for model in models
    ]


def tanh_head(hidden: Tensor, dense: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor]) -> Tensor:
    """W₂ tanh(W₁ h + b₁) + b₂ for one vector h."""
    inner = torch.stack([torch.tanh((row * hidden).sum() + b) for row, b in zip(*dense, strict=True)])
    return torch.stack([(row * inner).sum() + b for row, b in zip(*out, strict=True)])


def mean_of_losses(logits: Sequence[Tensor], labels: Tensor, problem: str) -> Tensor:
    """(1/M) Σ_j task(z_j, y)."""
    total = torch.zeros((), dtype=logits[0].dtype)
    for z in logits:
        if problem == "regression":
            total = total + ((z.squeeze(-1) - labels) ** 2).mean()
        elif problem == "multi_label_classification":
            yes, no = torch.log(torch.sigmoid(z)), torch.log(1 - torch.sigmoid(z))
            total = total - (labels * yes + (1 - labels) * no).mean()
        else:
            rows = [torch.log_softmax(row, -1)[int(y)] for row, y in zip(z, labels, strict=True) if y != -100]
            total = total - torch.stack(rows).mean()
    return total / len(logits)


def mean_head(weights: Tensor, biases: Tensor) -> tuple[Tensor, Tensor]:
    """(1/M) Σ_m W_m and (1/M) Σ_m b_m."""
    weight, bias = torch.zeros_like(weights[0]), torch.zeros_like(biases[0])
    for w, b in zip(weights, biases, strict=True):
        weight, bias = weight + w, bias + b
    return weight / len(weights), bias / len(biases)


def bert_base(members: int, shared: int, labels: int, *, pooler: bool) -> int:
    """Parameters of BERT-base with tanh heads, counted by hand."""
    width, inner, words, positions, types = 768, 3072, 30522, 512, 2
    norm = 2 * width
    embeddings = (words + positions + types) * width + norm
    attention = 4 * (width * width + width) + norm
    feed_forward = (width * inner + inner) + (inner * width + width) + norm
    layer = attention + feed_forward
    head = (width * width + width) + (labels * width + labels)
    top = (12 - shared) * layer
    return embeddings + shared * layer + pooler * (width * width + width) + members * (top + head)
