"""Padded batches with labels for every family and head, and ways of batching the same examples anew."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.models import texts, tiny_tokenizer

Batch = dict[str, Tensor]


def batch(family: str, head: str, *, n: int = 4, labels: int = 3, seed: int = 0) -> Batch:
    """Returns n texts of unequal length, padded to the longest, labelled at random."""
    encoded = dict(tiny_tokenizer(family)(texts(n, seed=seed), padding=True, return_tensors="pt"))
    draw = torch.Generator().manual_seed(seed)
    real = encoded["attention_mask"].bool()
    if head == "sequence":
        encoded["labels"] = torch.randint(labels, (n,), generator=draw)
    elif head == "regression":
        encoded["labels"] = torch.randn(n, generator=draw)
    elif head == "multi_label":
        encoded["labels"] = torch.randint(2, (n, labels), generator=draw).float()
    elif head == "token":
        # Every third token carries no label, as continuations of words do not.
        counted = real & (torch.arange(real.shape[1]) % 3 != 0)
        encoded["labels"] = torch.randint(labels, real.shape, generator=draw).masked_fill(~counted, -100)
    elif head == "qa":
        lengths = real.sum(1)
        encoded["start_positions"] = (torch.rand(n, generator=draw) * lengths).long()
        encoded["end_positions"] = (torch.rand(n, generator=draw) * lengths).long()
    return encoded


def length(one: Batch) -> int:
    """Returns how many tokens of a single example are real."""
    return int(one["attention_mask"].sum())


def trimmed(one: Batch) -> Batch:
    """Returns a single example without its padding."""
    width, real = one["attention_mask"].shape[1], length(one)
    of_tokens = {name for name, value in one.items() if value.dim() == 2 and value.shape[1] == width}
    of_tokens -= {"labels"} if one.get("labels", torch.zeros(0)).is_floating_point() else set()
    return {name: value[:, :real] if name in of_tokens else value for name, value in one.items()}


def examples(whole: Batch) -> list[Batch]:
    """Returns the examples of a batch one by one, without padding."""
    count = len(whole["attention_mask"])
    return [trimmed({name: value[i : i + 1] for name, value in whole.items()}) for i in range(count)]


def together(some: list[Batch], *, pad: int, extra: int = 0) -> Batch:
    """Returns unpadded examples as one batch, with `extra` more columns of padding than needed."""
    width = max(length(one) for one in some) + extra
    fill = {"input_ids": pad, "labels": -100}
    rows: dict[str, list[Tensor]] = {name: [] for name in some[0]}
    for one in some:
        for name, value in one.items():
            padded = value
            if value.dim() == 2 and value.shape[1] == length(one) and not value.is_floating_point():
                padded = torch.nn.functional.pad(value, (0, width - value.shape[1]), value=fill.get(name, 0))
            rows[name].append(padded)
    return {name: torch.cat(values) for name, values in rows.items()}
