"""Adding up what each source learned."""

from __future__ import annotations

from plait.merging.rule import RULES, Law
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "task_arithmetic",
    paper="arXiv:2212.04089",
    laws={Law.SYMMETRIC, Law.ELEMENTWISE, Law.ANCHORED, Law.PROPAGATES},
    search={"scale": (0.05, 1.5)},
    when="Base at hand, as a baseline, or to set the strength of each source by hand.",
)
def task_arithmetic(
    params: Stack, base: Parameter, weights: Coefficients, *, scale: float = 0.4
) -> Parameter:
    """Returns the base plus the scaled sum of the task vectors.

    θ = θ_0 + s Σ_j λ_j (θ_j − θ_0)

    λ is 1 per source unless given and is not normalised: with n sources and s = 1/n this is `average`. The default
    s = 0.4 is what the literature uses when there is no validation data to choose it on.

    Args:
        params: the parameter of the sources.
        base: θ_0.
        weights: λ.
        scale: s.
    """
    result = base.clone()
    for parameter, weight in zip(params, weights.tolist(), strict=True):
        result.add_(parameter - base, alpha=scale * weight)
    return result
