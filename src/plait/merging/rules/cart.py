"""CART: the average plus what each source has beyond it, kept in few directions."""

from __future__ import annotations

import math

import torch

from plait.merging.algebra import thin_svd
from plait.merging.rule import RULES, Law, task_vectors
from plait.merging.rules.average import average
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "cart",
    paper="arXiv:2412.12153",
    laws={Law.IDEMPOTENT, Law.SYMMETRIC},
    limits={"keep": (0.0, 1.0)},
    elsewhere="average",
    when="Neither base nor data, and the average loses too much.",
)
def cart(params: Stack, weights: Coefficients, *, keep: float = 0.08, scale: float = 1.0) -> Parameter:
    """Returns the average plus the strongest singular directions of all differences to it.

    θ = θ̄ + s Σ_j λ_j trunc_k(θ_j − θ̄),  θ̄ = Σ_j λ_j θ_j / Σ_j λ_j,  trunc_k keeps k = ⌈p · min(out, in)⌉ directions

    For linear weights of layers; all other parameters get the λ-average. The paper picks s on validation data.

    Args:
        params: the parameter of the sources, [n, out, in].
        weights: λ, 1 per source unless given.
        keep: p.
        scale: s.
    """
    mean: Parameter = average(params, weights)
    directions = math.ceil(keep * min(mean.shape) - 1e-9)
    result = mean.double()
    for change, share in zip(*task_vectors(params, mean, weights), strict=True):
        left, values, right = thin_svd(change, directions)
        result = result + (left * (values * scale * share)) @ right.T
    return result.to(mean.dtype) if directions else torch.clone(mean)
