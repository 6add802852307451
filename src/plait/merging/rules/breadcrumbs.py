"""Model Breadcrumbs: task vectors without their smallest and their largest entries, summed."""

from __future__ import annotations

from typing import Literal

from plait.merging.rule import RULES, Law
from plait.merging.rules.ties import Then, joined
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "breadcrumbs",
    paper="arXiv:2312.06795",
    laws={Law.SYMMETRIC, Law.ELEMENTWISE, Law.ANCHORED},
    limits={"density": (0.0, 1.0), "outliers": (0.0, 1.0)},
    search={"density": (0.05, 1.0), "outliers": (0.0, 0.05), "scale": (0.05, 2.0)},
    when="Base at hand, and outliers among the changes spoil other tasks.",
)
def breadcrumbs(
    params: Stack,
    base: Parameter,
    weights: Coefficients,
    thresholds: Coefficients,
    ceilings: Coefficients,
    *,
    density: float = 0.15,
    outliers: float = 0.006,
    scope: Literal["tensor", "model"] = "tensor",
    then: Then = "sum",
    scale: float = 0.2,
) -> Parameter:
    """Returns the base plus the scaled sum of task vectors without negligible changes and outliers.

    τ_j = (θ_j − θ_0) where c_j ≤ |θ_j − θ_0| < d_j, else 0;  θ = θ_0 + s Σ_j λ_j τ_j

    c_j is exactly the k-th greatest |θ_j − θ_0|, k = ⌈density · size⌉, and d_j the l-th, l = ⌊outliers · size⌋. Entries
    equal to d_j all go. The defaults are where the authors' search for parameters starts.

    Args:
        params: the parameter of the sources.
        base: θ_0.
        weights: λ, 1 per source unless given.
        thresholds: c_j.
        ceilings: d_j.
        density: share of each source's changes that is not too small; the outliers are among them.
        outliers: share of each source's changes that is too large.
        scope: what the shares refer to, each tensor by itself (as published) or the whole model.
        then: how the task vectors are merged: sum or mean of all, or of those that agree with the elected sign.
        scale: s.
    """
    del density, outliers, scope  # thresholds and ceilings were computed from them
    changes = [parameter - base for parameter in params]
    for change, least, most in zip(changes, thresholds.tolist(), ceilings.tolist(), strict=True):
        size = change.abs()
        # Products, because torch fills by mask forty times slower than it multiplies.
        change.mul_(size.ge(least)).mul_(size.lt(most))
    return joined(changes, weights, then).mul_(scale).add_(base)
