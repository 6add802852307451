"""LoRA ensemble: members that add low-rank updates of their own to the attention of one encoder."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from plait.ensembles.factors import by_member, factor_layers, freeze, in_attention
from plait.ensembles.method import METHODS, Terms
from plait.ensembles.modeling import Ensemble
from plait.ensembles.shapes import Scalar
from plait.ensembles.sharing import ActiveMembers


class LowRank(nn.Linear):
    """A linear layer with an update B_m A_m of rank r by member, for a batch of one member's rows after another's."""

    def __init__(self, own: nn.Linear, roster: ActiveMembers, rank: int) -> None:
        """Takes over a layer's weights; A is drawn as linear layers are, B begins at 0, so that nothing changes."""
        super().__init__(own.in_features, own.out_features, own.bias is not None, device="meta")
        self.weight, self.bias = own.weight, own.bias
        self.roster = roster
        down = own.weight.new_empty(roster.members, rank, own.in_features).uniform_(-1, 1)
        self.down = nn.Parameter(down / math.sqrt(own.in_features))
        self.up = nn.Parameter(own.weight.new_zeros(roster.members, own.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x Wᵀ + x A_mᵀ B_mᵀ + b for the rows of each member m."""
        active = list(self.roster.active)
        rows = by_member(x, len(active))
        update = torch.einsum("mnr,mor->mno", torch.einsum("mni,mri->mnr", rows, self.down[active]), self.up[active])
        shared: Tensor = nn.functional.linear(x, self.weight, self.bias)
        return shared + update.reshape(shared.shape)

    def weight_of(self, member: int) -> Tensor:
        """Returns W + B_m A_m, the weights of one member."""
        return self.weight + self.up[member] @ self.down[member]


def add_updates(model: Ensemble, *, rank: int = 8, encoder: str = "trained") -> None:
    """Gives the attention of a wholly shared encoder low-rank updates by member, in place."""
    layers = [(name, module) for name, module in factor_layers(model) if in_attention(name)]
    if encoder == "frozen":
        freeze(model)
    for name, module in layers:
        model.encoder.set_submodule(name, LowRank(module, model.roster, int(rank)))


@METHODS.register(
    "lora",
    build="factors",
    factors=add_updates,
    limits={"rank": (1, 4096)},
    paper="arXiv:2405.14438",
    when="Members that add few parameters to one encoder, at M passes for each prediction.",
)
def lora(
    task: Scalar,
    *,
    rank: int = 8,  # noqa: ARG001 (these are read by whoever builds the model)
    encoder: Literal["trained", "frozen"] = "trained",  # noqa: ARG001
) -> Terms:
    """Returns the members' losses, (1/M) Σ_j task(z_j, y), where member j has attention weights W + B_j A_j  (eq. 3).

    Differs from the paper in training W too, unless `encoder` is frozen as it is there; in starting B at 0 and the
    scale at 1; and in the place of the updates: all linear layers of the attention, its output's too.

    Args:
        task: The members' mean loss.
        rank: r.
        encoder: Whether what members share learns as well; frozen wants a higher learning rate.
    """
    return {"task": task}
