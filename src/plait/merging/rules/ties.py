"""TIES: trim small changes, elect a sign, average what agrees with it."""

from __future__ import annotations

from typing import Literal

import torch

from plait.merging.rule import RULES, Law
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "ties",
    paper="arXiv:2306.01708",
    laws={Law.SYMMETRIC, Law.ELEMENTWISE, Law.ANCHORED},
    limits={"density": (0.0, 1.0)},
    when="Base at hand, and the signs of changes disagree between sources.",
)
def ties(
    params: Stack,
    base: Parameter,
    weights: Coefficients,
    thresholds: Coefficients,
    *,
    density: float = 0.2,
    scope: Literal["tensor", "model"] = "tensor",
    scale: float = 1.0,
) -> Parameter:
    """Returns the base plus the disjoint mean of the trimmed task vectors.

    τ_j = (θ_j − θ_0) where |θ_j − θ_0| ≥ c_j, else 0;  γ = sgn Σ_j λ_j τ_j;
    θ = θ_0 + s Σ_{j: sgn τ_j = γ} λ_j τ_j / Σ_{j: sgn τ_j = γ} λ_j   (algorithm 1)

    c_j is exactly the k-th greatest |θ_j − θ_0|, k = ⌈density · size⌉; entries equal to it all survive, so the result
    depends neither on chunks nor on the order of entries. Where the λ-sum cancels exactly, no sign is elected and the
    base is kept.

    Args:
        params: the parameter of the sources.
        base: θ_0.
        weights: λ; only their ratios count.
        thresholds: c_j.
        density: share of each source's changes that is kept.
        scope: what the share refers to, each tensor by itself (as released) or the whole model.
        scale: s.
    """
    del density, scope  # the thresholds were computed from them
    changes = [parameter - base for parameter in params]
    for change, threshold in zip(changes, thresholds.tolist(), strict=True):
        # A product, because torch fills by mask forty times slower than it multiplies.
        change.mul_(change.abs().ge_(threshold))
    return elected_mean(changes, weights).mul_(scale).add_(base)


def elected_mean(changes: list[torch.Tensor], weights: Coefficients) -> Parameter:
    """Returns, entry by entry, the λ-mean of those changes whose sign is that of their λ-sum; 0 where there is none."""
    elected = changes[0] * float(weights[0])
    for change, weight in zip(changes[1:], weights[1:].tolist(), strict=True):
        elected.add_(change, alpha=weight)
    sign = elected.sign_()
    total, share = torch.zeros_like(sign), torch.zeros_like(sign)
    for change, weight in zip(changes, weights.tolist(), strict=True):
        agreeing = (change * sign).clamp_(min=0.0)
        total.add_(agreeing, alpha=weight)
        share.add_(agreeing.sign_(), alpha=weight)
    nobody = torch.finfo(share.dtype).tiny
    return total.mul_(sign).div_(share.clamp_(min=nobody))
