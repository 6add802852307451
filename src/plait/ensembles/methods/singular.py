"""Singular-value ensemble: members that share the singular vectors of an encoder's layers, each with its own values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.ensembles.factors import factor_layers, freeze, rows_of
from plait.ensembles.method import METHODS, Terms
from plait.ensembles.modeling import Ensemble
from plait.ensembles.shapes import Scalar
from plait.ensembles.sharing import ActiveMembers


class Singular(nn.Module):
    """A linear layer U diag(σ_m) Vᵀ with values and biases by member; U and V are everybody's and stay as they are."""

    def __init__(self, own: nn.Linear, roster: ActiveMembers, spread: float) -> None:
        """Takes a layer apart; a member's values begin at its own times 1 plus noise, its biases at its own."""
        super().__init__()
        self.roster, self.in_features, self.out_features = roster, own.in_features, own.out_features
        self.kept = own.weight.numel()  # U and V are made of the base's weights, which is what need be kept
        u, values, v = _taken_apart(own.weight)
        self.register_buffer("u", u)
        self.register_buffer("v", v)
        members = values.expand(roster.members, -1)
        self.values = nn.Parameter(members * (1 + spread * torch.randn_like(members)))
        self.bias = None if own.bias is None else nn.Parameter(own.bias.detach().repeat(roster.members, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x V diag(σ_m) Uᵀ + b_m for the rows of each member m."""
        u: Tensor = self.get_buffer("u")
        inside = nn.functional.linear(x, self.get_buffer("v"))
        out = nn.functional.linear(inside * rows_of(self.values, self.roster, inside), u)
        return out if self.bias is None else out + rows_of(self.bias, self.roster, out)

    def weight_of(self, member: int) -> Tensor:
        """Returns U diag(σ_m) Vᵀ, the weights of one member."""
        return (self.get_buffer("u") * self.values[member]) @ self.get_buffer("v")

    def bias_of(self, member: int) -> Tensor | None:
        """Returns the biases of one member."""
        return None if self.bias is None else self.bias[member]


@torch.no_grad()
def _taken_apart(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns U, σ and Vᵀ of W = U diag(σ) Vᵀ; of weights that are not there, shapes alone."""
    if weight.is_meta:
        rank = min(weight.shape)
        return weight.new_empty(weight.shape[0], rank), weight.new_empty(rank), weight.new_empty(rank, weight.shape[1])
    u, values, v = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    return u.to(weight.dtype).contiguous(), values.to(weight.dtype), v.to(weight.dtype).contiguous()


def take_apart(model: Ensemble, *, spread: float = 0.1) -> None:
    """Gives the layers of a wholly shared encoder singular values and biases by member, in place; all else freezes."""
    layers = list(factor_layers(model))
    freeze(model)
    for name, module in layers:
        model.encoder.set_submodule(name, Singular(module, model.roster, spread))


@METHODS.register(
    "singular",
    build="factors",
    factors=take_apart,
    limits={"spread": (0, 1)},
    paper="arXiv:2601.22068",
    when="Members with very few parameters of their own over a frozen encoder.",
)
def singular(task: Scalar, *, spread: float = 0.1) -> Terms:  # noqa: ARG001 (read by whoever builds the model)
    """Returns the members' losses, (1/M) Σ_j task(z_j, y), where member j has weights U diag(σ_j) Vᵀ.

    U and V are those of the base's weights and everybody's; σ_j and the biases are a member's own; embeddings and
    normalisations stay as they are. Few parameters learn, so that the learning rate wants to be ten times higher.

    Args:
        task: The members' mean loss.
        spread: The standard deviation of the noise in the start of σ_j / σ.
    """
    return {"task": task}
