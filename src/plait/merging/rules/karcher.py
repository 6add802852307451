"""The Karcher mean: the point of the sphere that is nearest to all sources, at their mean length."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.merging.algebra import inner_products
from plait.merging.rule import RULES, Law, normalized
from plait.merging.rules.average import average
from plait.tensors import Coefficients, Parameter, Stack

ROUNDS = 1000
NEAR = 1e-7
"""Radians that are none: inner products in float64 tell no smaller angle apart."""


@RULES.register(
    "karcher",
    paper="doi:10.1002/cpa.3160300502",
    laws={Law.IDEMPOTENT, Law.SYMMETRIC, Law.PROPAGATES},
    when="Neither base nor data, and the average shrinks the weights.",
)
def karcher(params: Stack, weights: Coefficients) -> Parameter:
    """Returns the weighted mean of directions on the sphere, of the sources' mean length, tensor by tensor.

    x̂ minimises Σ_j λ_j d(x̂, θ_j/‖θ_j‖)², d the angle;  θ = x̂ · Σ_j λ_j ‖θ_j‖ / Σ_j λ_j

    Found by x̂ ← exp_x̂(Σ_j λ_j log_x̂(θ_j/‖θ_j‖) / Σ λ) from the direction of the straight mean until nothing moves.
    Every point on the way is a combination of the sources, so that after their inner products no tensor is touched.
    Tensors of zeros have no direction and only lower the length. Where a source lies a right angle or more from the
    direction of the straight mean, the mean on the sphere need not be unique and the λ-average is taken. For two
    sources of one length this is `slerp`.

    Args:
        params: the parameter of the sources.
        weights: λ; only their ratios count.
    """
    shares = normalized(weights.double())
    products = inner_products(params)
    lengths = products.diagonal().sqrt()
    pointing = (lengths > 0) & (shares > 0)
    if not bool(torch.isfinite(products).all()) or not bool(pointing.any()):
        return average(params, weights)
    norms = lengths[pointing]
    mixture = centre(products[pointing][:, pointing] / (norms[:, None] * norms), normalized(shares[pointing]))
    if mixture is None:
        return average(params, weights)
    factors = torch.zeros_like(lengths)
    factors[pointing] = mixture / norms * (shares * lengths).sum()
    result = torch.zeros_like(params[0])
    for parameter, factor in zip(params, factors.tolist(), strict=True):
        result.add_(parameter, alpha=factor)
    return result


def centre(cosines: Tensor, shares: Tensor) -> Tensor | None:
    """Returns the combination of unit vectors that is their mean on the sphere, None where there is no single one."""
    length = (shares @ cosines @ shares).clamp(min=0.0).sqrt()
    if length < NEAR or bool((cosines @ shares <= NEAR * length).any()):
        return None
    point = shares / length
    for _ in range(ROUNDS):
        towards = (cosines @ point).clamp(-1.0, 1.0)
        stretch = shares / torch.sinc(towards.arccos() / torch.pi)
        step = stretch - (stretch @ towards) * point
        size = (step @ cosines @ step).clamp(min=0.0).sqrt()
        if size < NEAR:
            break
        point = point * size.cos() + step * torch.sinc(size / torch.pi)
        point = point / (point @ cosines @ point).sqrt()
    return point
