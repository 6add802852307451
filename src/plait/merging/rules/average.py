"""Weighted averaging of parameters, also known as model soups."""

from __future__ import annotations

from plait.merging.rule import RULES, Law, normalized
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "average",
    paper="arXiv:2203.05482",
    laws={Law.IDEMPOTENT, Law.SYMMETRIC, Law.BOUNDED, Law.ELEMENTWISE, Law.PROPAGATES},
    when="Neither base nor data: sources whose weights are close to each other.",
)
def average(params: Stack, weights: Coefficients) -> Parameter:
    """Returns the weighted mean of the sources, the plain one where no weights are given.

    θ = Σ_j λ_j θ_j / Σ_j λ_j
    """
    shares = normalized(weights).tolist()
    result: Parameter = params[0] * shares[0]
    for share, parameter in zip(shares[1:], params[1:], strict=True):
        result.add_(parameter, alpha=share)
    return result
