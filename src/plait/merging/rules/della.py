"""DELLA: changes dropped at random, small ones more often, then merged by TIES' election."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.merging.rule import RULES, Law
from plait.merging.rules.ties import Then, joined
from plait.tensors import Coefficients, Parameter, Stack

CERTAIN = 0.999
"""No entry is dropped more surely than this: what survives is divided by the rest."""


@RULES.register(
    "della",
    paper="arXiv:2406.11617",
    laws={Law.SYMMETRIC, Law.ROWWISE, Law.ANCHORED},
    limits={"drop": (0.0, CERTAIN), "epsilon": (0.0, 1.0)},
    search={"drop": (0.0, 0.95), "scale": (0.1, 2.0)},
    when="Base at hand, as dare, where large changes should be kept more surely.",
)
def della(
    params: Stack,
    base: Parameter,
    weights: Coefficients,
    draws: Stack,
    *,
    drop: float = 0.5,
    epsilon: float = 0.15,
    then: Then = "ties",
    scale: float = 1.0,
) -> Parameter:
    """Returns the base plus the elected mean of task vectors pruned at random by the rank of their magnitudes.

    p_i = p − ε/2 + ε r_i / n with r_i of the n entries in a row above |θ_j − θ_0| at i (cut to [0, 0.999]);
    τ_j = (θ_j − θ_0) / (1 − p_i) with probability 1 − p_i, else 0;  θ = θ_0 + s · mean of the τ_j that agree with the
    sign of Σ_j λ_j τ_j, weighted by λ

    A row is what one output neuron reads; a vector is one row. Equal magnitudes have equal ranks, so an entry's fate
    depends on the seed and its place, neither on chunks nor on the order of sources.

    Args:
        params: the parameter of the sources.
        base: θ_0.
        weights: λ; only their ratios count.
        draws: uniform numbers in [0, 1); below p_i the entry is dropped.
        drop: p, the mean probability.
        epsilon: ε, by how much the smallest changes go more often than the greatest.
        then: how the task vectors are merged: mean or sum of all, or of those that agree with the elected sign.
        scale: s.
    """
    changes = [parameter - base for parameter in params]
    for change, draw in zip(changes, draws, strict=True):
        chance = (ranks(change.abs()) * epsilon + (drop - epsilon / 2)).clamp_(0.0, CERTAIN)
        change.mul_(draw.ge(chance)).div_(1.0 - chance)
    return joined(changes, weights, then).mul_(scale).add_(base)


def ranks(sizes: Tensor) -> Tensor:
    """Returns per entry the share of its row (the last axis) that is greater."""
    rows = sizes if sizes.dim() else sizes.reshape(1)
    rising = rows.sort(dim=-1).values
    above = rows.shape[-1] - torch.searchsorted(rising, rows.contiguous(), right=True)
    return (above / rows.shape[-1]).reshape(sizes.shape)
