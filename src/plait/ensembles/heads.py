"""The members' heads, stacked: one product gives the logits of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from plait.ensembles.shapes import MemberLogits

Features = Float[Tensor, "M *rows d"]
"""What the heads look at, members first: [M, B, d], or [M, B, T, d] for tokens."""


class StackedLinear(nn.Module):
    """M linear layers of one shape."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        """Makes the layers; `Ensemble._init_weights` draws their values."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(members, outputs))

    def forward(self, x: Tensor, members: Sequence[int] | None = None) -> MemberLogits:
        """Returns W_m x_m + b_m for the members asked for, all by default: one product for all of them."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if members is not None and len(members) < len(weight):
            weight, bias = weight[list(members)], bias[list(members)]
        shape = (len(bias), *[1] * (x.dim() - 2), -1)
        return torch.einsum("m...d,mcd->m...c", x, weight) + bias.view(shape)


class LinearHeads(nn.Module):
    """One linear layer per member on features that end in the encoder's own class."""

    def __init__(self, members: int, width: int, labels: int) -> None:
        """Makes the heads."""
        super().__init__()
        self.out = StackedLinear(members, width, labels)

    def forward(self, features: Features, members: Sequence[int] | None = None) -> MemberLogits:
        """Returns the logits of each member for its own features."""
        logits: Tensor = self.out(features, members)
        return logits


class TanhHeads(nn.Module):
    """h → dropout → Linear(d, d) → tanh → dropout → Linear(d, C), one per member (CAMERO, section 4)."""

    def __init__(self, members: int, width: int, labels: int, dropout: float) -> None:
        """Makes the heads."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = StackedLinear(members, width, width)
        self.out = StackedLinear(members, width, labels)

    def forward(self, features: Features, members: Sequence[int] | None = None) -> MemberLogits:
        """Returns the logits of each member for its own features."""
        hidden = torch.tanh(self.dense(self.dropout(features), members))
        logits: Tensor = self.out(self.dropout(hidden), members)
        return logits


def last_linear(own: PreTrainedModel) -> tuple[str, nn.Linear]:
    """Returns the layer that gives labels in a class of transformers: the last one outside the encoder that fits."""
    labels = own.config.num_labels
    fitting = ((n, m) for n, m in _outside(own) if isinstance(m, nn.Linear) and m.out_features == labels)
    return list(fitting)[-1]


def without_last_linear(own: PreTrainedModel, dropout: float | None) -> int:
    """Takes the layer that gives labels out of a class of transformers; returns the width of what it saw.

    The dropout before it is set, where one is given.
    """
    for _, module in _outside(own):
        if isinstance(module, nn.Dropout) and dropout is not None:
            module.p = dropout
    name, last = last_linear(own)
    own.set_submodule(name, nn.Identity())
    return last.in_features


def _outside(own: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules of a class that are not its encoder's, in their order."""
    for child, owner in own.named_children():
        if owner is not own.base_model:
            yield from owner.named_modules(prefix=child)


def drop_pooler(base: PreTrainedModel) -> None:
    """Removes the pooler of an encoder that is not kept whole."""
    for name in ("pooler", "pooler_activation"):  # ALBERT keeps the tanh beside it
        if getattr(base, name, None) is not None:
            setattr(base, name, None)


def freeze_pooler(encoder: PreTrainedModel) -> None:
    """Freezes the pooler of a bare encoder: tanh heads do not look at it, but it belongs to the encoder."""
    pooler = getattr(encoder, "pooler", None)
    if pooler is not None and encoder.base_model is encoder:
        pooler.requires_grad_(False)
