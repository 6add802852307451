"""TIES: trim small changes, elect a sign, average what agrees with it."""

from __future__ import annotations

from typing import Literal

import torch

from plait.merging.rule import RULES, Law, normalized
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "ties",
    paper="arXiv:2306.01708",
    laws={Law.SYMMETRIC, Law.ELEMENTWISE, Law.ANCHORED},
    limits={"density": (0.0, 1.0)},
    search={"density": (0.05, 1.0), "scale": (0.1, 3.0)},
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
    then: Literal["mean", "sum"] = "mean",
    scale: float = 1.0,
) -> Parameter:
    """Returns the base plus the disjoint mean of the trimmed task vectors.

    τ_j = (θ_j − θ_0) where |θ_j − θ_0| ≥ c_j, else 0;  γ = sgn Σ_j λ_j τ_j;
    θ = θ_0 + s Σ_{j: sgn τ_j = γ} λ_j τ_j / Σ_{j: sgn τ_j = γ} λ_j   (algorithm 1)

    c_j is exactly the k-th greatest |θ_j − θ_0|, k = ⌈density · size⌉; entries equal to it all survive, so the result
    depends neither on chunks nor on the order of entries. Where the λ-sum cancels exactly, no sign is elected and the
    base is kept. With `then: sum` what agrees is added up instead, so that λ need not sum to 1.

    Args:
        params: the parameter of the sources.
        base: θ_0.
        weights: λ; only their ratios count.
        thresholds: c_j.
        density: share of each source's changes that is kept.
        scope: what the share refers to, each tensor by itself (as released) or the whole model.
        then: mean or sum of the changes that agree.
        scale: s.
    """
    del density, scope  # the thresholds were computed from them
    changes = [parameter - base for parameter in params]
    for change, threshold in zip(changes, thresholds.tolist(), strict=True):
        # A product, because torch fills by mask forty times slower than it multiplies.
        change.mul_(change.abs().ge_(threshold))
    return elected(changes, weights, mean=then == "mean").mul_(scale).add_(base)


Then = Literal["average", "sum", "ties", "ties_sum"]
"""How changes become one: mean or sum of all, or of those that agree with the elected sign."""


def joined(changes: list[torch.Tensor], weights: Coefficients, then: Then) -> Parameter:
    """Returns the changes of all sources as one."""
    if then in ("ties", "ties_sum"):
        return elected(changes, weights, mean=then == "ties")
    result = torch.zeros_like(changes[0])
    for change, weight in zip(changes, (normalized(weights) if then == "average" else weights).tolist(), strict=True):
        result.add_(change, alpha=weight)
    return result


def elected(changes: list[torch.Tensor], weights: Coefficients, *, mean: bool = True) -> Parameter:
    """Returns, entry by entry, the λ-mean of those changes whose sign is that of their λ-sum; 0 where there is none.

    Without `mean`, their λ-sum.
    """
    direction = changes[0] * float(weights[0])
    for change, weight in zip(changes[1:], weights[1:].tolist(), strict=True):
        direction.add_(change, alpha=weight)
    sign = direction.sign_()
    total, share = torch.zeros_like(sign), torch.zeros_like(sign)
    for change, weight in zip(changes, weights.tolist(), strict=True):
        agreeing = (change * sign).clamp_(min=0.0)
        total.add_(agreeing, alpha=weight)
        share.add_(agreeing.sign_(), alpha=weight)
    if not mean:
        return total.mul_(sign)
    nobody = torch.finfo(share.dtype).tiny
    return total.mul_(sign).div_(share.clamp_(min=nobody))
