"""Members with factors of their own over one encoder's linear layers: rank-1 scales here, others with their methods.

A member's weights are a function of the shared ones, `weight_of(m)`, and perhaps its biases, `bias_of(m)`: what was
learnt can be written as an ordinary ensemble whose layers are all private, larger on disk and the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plait.encoders.layers import path_of_layers
from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.folding import configuration
from plait.ensembles.modeling import Ensemble
from plait.ensembles.sharing import TOPS, ActiveMembers, original


class Factored(nn.Linear):
    """A linear layer with factors by member, for a batch of one member's rows after another's."""

    def __init__(self, own: nn.Linear, roster: ActiveMembers, spread: float) -> None:
        """Takes over a layer's weights; factors begin at 1 plus noise."""
        super().__init__(own.in_features, own.out_features, own.bias is not None, device="meta")
        self.weight, self.bias = own.weight, own.bias
        self.roster = roster
        like = own.weight
        self.scale_in = nn.Parameter(1 + spread * _noise(roster.members, own.in_features, like))
        self.scale_out = nn.Parameter(1 + spread * _noise(roster.members, own.out_features, like))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (x ∘ r_m) Wᵀ ∘ s_m + b for the rows of each member m."""
        scaled = nn.functional.linear(x * rows_of(self.scale_in, self.roster, x), self.weight)
        out = scaled * rows_of(self.scale_out, self.roster, scaled)
        return out if self.bias is None else out + self.bias

    def weight_of(self, member: int) -> Tensor:
        """Returns W ∘ s rᵀ, the weights of one member."""
        return self.weight * torch.outer(self.scale_out[member], self.scale_in[member])


def rows_of(factor: Tensor, roster: ActiveMembers, x: Tensor) -> Tensor:
    """Returns a factor [M, d] for every row of the batch, or the one member's for all."""
    active = list(roster.active)
    if len(active) == 1:
        return factor[active[0]]
    rows = factor[active].repeat_interleave(len(x) // len(active), dim=0)
    return rows.view(len(rows), *[1] * (x.dim() - 2), -1)


def by_member(x: Tensor, members: int) -> Tensor:
    """Returns a batch of one member's rows after another's as [M, N, d]."""
    return x.reshape(members, -1, x.shape[-1])


def add_factors(model: Ensemble, spread: float = 0.1) -> None:
    """Gives the linear layers above the embeddings of a wholly shared encoder factors by member, in place."""
    for name, module in list(factor_layers(model)):
        model.encoder.set_submodule(name, Factored(module, model.roster, spread))


def freeze(model: Ensemble) -> None:
    """Keeps all parameters of an encoder as they are, in place; the heads' go on learning."""
    model.encoder.requires_grad_(False)


def in_attention(name: str) -> bool:
    """Says whether a layer belongs to the attention, which every family calls so."""
    return any(part.startswith(("attention", "attn")) for part in name.split("."))


def factor_layers(model: Ensemble) -> Iterator[tuple[str, nn.Linear]]:
    """Yields the linear layers that see rows of examples and come after the embeddings."""
    own = model.encoder
    inside = "" if own.base_model is own else f"{own.base_model_prefix}."
    own_layers = tuple(f"{inside}{part}" for part in (f"{path_of_layers(own.base_model)}.", *TOPS))
    for name, module in own.named_modules():
        after = name.startswith(own_layers) or not name.startswith(inside or name)
        learns = type(module) is nn.Linear and module.weight.requires_grad
        if after and learns and not _of_positions(name, own.config):
            yield name, module


def _of_positions(name: str, config: Any) -> bool:
    """Says whether a layer reads DeBERTa's table of relative positions, which has no rows of examples."""
    last = name.rpartition(".")[2]
    shares = getattr(config, "share_att_key", False) and getattr(config, "relative_attention", False)
    return last.startswith("pos_") or (shares and last in ("query_proj", "key_proj"))


def factor_parameters(model: Ensemble) -> int:
    """Returns how many parameters are saved where factors are kept as factors, beside the weights they belong to."""
    return sum(p.numel() for p in model.parameters()) + sum(getattr(m, "kept", 0) for m in model.modules())


@torch.no_grad()
def expanded(model: Ensemble) -> Ensemble:
    """Returns an ordinary ensemble of members with layers of their own that says the same."""
    config = configuration(model)
    made: Any = copy.deepcopy(config)
    made.shared_layers = 0
    ours = type(model)(made)
    factored = {name: m for name, m in model.encoder.named_modules() if hasattr(m, "weight_of")}
    state = model.encoder.state_dict()
    ours.encoder.load_state_dict(dict(_expanded(ours, made, state, factored)))
    ours.heads.load_state_dict(model.heads.state_dict())
    ours.eval()
    return ours


def _expanded(
    ours: Ensemble, config: EnsembleConfig, state: Mapping[str, Tensor], factored: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    for name in ours.encoder.state_dict():
        plain, owner = original(name, config.encoder)
        layer = factored.get(plain.rpartition(".")[0])
        own = None if layer is None or owner is None else f"{plain.rpartition('.')[2]}_of"
        yield name, state[plain] if own is None or not hasattr(layer, own) else getattr(layer, own)(owner)


def _noise(members: int, width: int, like: Tensor) -> Tensor:
    return torch.randn(members, width, dtype=like.dtype, device=like.device)
