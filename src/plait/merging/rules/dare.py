"""DARE: drop changes at random, rescale the rest, then merge."""

from __future__ import annotations

from plait.merging.rule import RULES, Law
from plait.merging.rules.ties import Then, joined
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "dare",
    paper="arXiv:2311.03099",
    laws={Law.SYMMETRIC, Law.ELEMENTWISE, Law.ANCHORED},
    limits={"drop": (0.0, 0.999)},
    search={"drop": (0.0, 0.95), "scale": (0.1, 2.0)},
    when="Base at hand, and many sources whose changes are small and redundant.",
)
def dare(
    params: Stack,
    base: Parameter,
    weights: Coefficients,
    draws: Stack,
    *,
    drop: float = 0.5,
    then: Then = "average",
    scale: float = 1.0,
) -> Parameter:
    """Returns the base plus the merged task vectors after dropping entries at random.

    τ_j = (θ_j − θ_0) / (1 − p) with probability 1 − p, else 0;
    θ = θ_0 + s Σ_j λ_j τ_j / Σ_j λ_j, or with `then: ties` the mean of those that agree with the elected sign; `sum`
    and `ties_sum` do not divide by the weights

    An entry's fate depends on the seed, the source's name, the parameter's name and the entry's place, on nothing
    else: chunks, threads and the order of sources change nothing.

    Args:
        params: the parameter of the sources.
        base: θ_0.
        weights: λ; only their ratios count.
        draws: uniform numbers in [0, 1); below p the entry is dropped.
        drop: p.
        then: how the task vectors are merged.
        scale: s.
    """
    changes = [parameter - base for parameter in params]
    for change, draw in zip(changes, draws, strict=True):
        change.mul_(draw.clone().ge_(drop)).div_(1.0 - drop)
    return joined(changes, weights, then).mul_(scale).add_(base)
