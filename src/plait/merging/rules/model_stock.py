"""Model Stock: the average, drawn towards the base the more the sources' ways differ."""

from __future__ import annotations

from torch import Tensor

from plait.merging.algebra import inner_products
from plait.merging.rule import RULES, Law, normalized
from plait.merging.rules.average import average
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "model_stock",
    paper="arXiv:2403.19522",
    laws={Law.IDEMPOTENT, Law.SYMMETRIC, Law.ANCHORED, Law.PROPAGATES},
    when="Base at hand, and sources that were trained on one task with different seeds.",
)
def model_stock(params: Stack, base: Parameter, weights: Coefficients) -> Parameter:
    """Returns the point between the base and the average that the angle between task vectors asks for.

    θ = t θ̄ + (1 − t) θ_0,  t = N cos φ / (1 + (N − 1) cos φ),  θ̄ = Σ_j λ_j θ_j / Σ_j λ_j   (eq. 4), tensor by tensor

    cos φ is the mean cosine over pairs of task vectors; a source that did not move has a cosine of 0 with the others.
    One source comes back as it is. With weights pairs count by λ_i λ_j and N = (Σ λ)² / Σ λ², the number of equal
    sources whose mean has the same variance.

    Differs from the paper where the mean cosine is negative, where t would be, and can be infinite: the base is kept.

    Args:
        params: the parameter of the sources.
        base: θ_0.
        weights: λ; only their ratios count.
    """
    mean: Parameter = average(params, weights)
    return mean.sub_(base).mul_(pull(inner_products(params, base), normalized(weights.double()))).add_(base)


def pull(products: Tensor, shares: Tensor) -> float:
    """Returns t from the inner products of task vectors and from weights that sum to 1."""
    lengths = products.diagonal().sqrt()
    cosines = (products / (lengths[:, None] * lengths)).where(products != 0, 0.0)
    pairs = shares[:, None] * shares
    pairs.fill_diagonal_(0.0)
    if not pairs.any():
        return 1.0
    cosine = ((cosines * pairs).sum() / pairs.sum()).clamp(min=0.0)
    count = 1.0 / shares.square().sum()
    # A number that is none stays none, so that it is found in the result.
    return float(count * cosine / (1 + (count - 1) * cosine))
