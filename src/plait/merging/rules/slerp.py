"""Interpolation along the arc between two sources."""

from __future__ import annotations

import math

from torch import Tensor

from plait.merging.algebra import inner_products
from plait.merging.rule import RULES, Law, normalized
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "slerp",
    paper="doi:10.1145/325165.325242",
    laws={Law.IDEMPOTENT, Law.SYMMETRIC, Law.PROPAGATES},
    sources=2,
    limits={"straight": (0.0, 1.0)},
    when="Exactly two sources, neither base nor data.",
)
def slerp(params: Stack, weights: Coefficients, *, straight: float = 1.0) -> Parameter:
    """Returns the point at the share t of the arc from the first source to the second, tensor by tensor.

    θ = (sin((1 − t) Ω) θ_1 + sin(t Ω) θ_2) / sin Ω,  cos Ω = ⟨θ_1, θ_2⟩ / (‖θ_1‖ ‖θ_2‖),  t = λ_2 / (λ_1 + λ_2)

    Tensors that are parallel, opposite or zero have no single arc between them: there the straight line is taken.

    Args:
        params: the parameter of exactly two sources.
        weights: λ.
        straight: |cos Ω| above which the straight line is taken too.
    """
    first, second = params
    rest, share = normalized(weights.double()).tolist()
    products = inner_products(params).tolist()
    length = math.sqrt(products[0][0] * products[1][1])
    cosine = products[0][1] / length if length > 0 else math.nan
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.isfinite(cosine) and math.sin(angle) > 1e-6 and abs(cosine) <= straight:
        rest, share = (math.sin(part * angle) / math.sin(angle) for part in (rest, share))
    result: Tensor = (first * rest).add_(second, alpha=share)
    return result
