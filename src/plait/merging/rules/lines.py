"""LiNeS: task arithmetic that moves deep layers further than shallow ones."""

from __future__ import annotations

from plait.merging.rule import RULES, Law
from plait.merging.rules.task_arithmetic import task_arithmetic
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "lines",
    paper="arXiv:2410.17146",
    laws={Law.SYMMETRIC, Law.ELEMENTWISE, Law.ANCHORED, Law.PROPAGATES},
    search={"alpha": (0.2, 2.0), "beta": (0.0, 2.0)},
    when="Base at hand, and lower layers should stay close to it.",
)
def lines(
    params: Stack,
    base: Parameter,
    weights: Coefficients,
    depth: float,
    *,
    alpha: float = 1.0,
    beta: float = 0.5,
) -> Parameter:
    """Returns the base plus the sum of task vectors, scaled linearly with depth.

    θ = θ_0 + (α / Σ_j λ_j + β d) Σ_j λ_j (θ_j − θ_0),  d = (l − 1) / (L − 1) in layer l of L

    With α = 1, as published, the first layer and the embeddings get the λ-average. The paper picks β on validation
    data.

    Differs from the paper in what comes after the last layer (its norm, a pooler), which has d = 1; there it has 0.

    Args:
        params: the parameter of the sources.
        base: θ_0.
        weights: λ, 1 per source unless given.
        depth: d.
        alpha: α, the scale at the first layer in units of 1 / Σ λ.
        beta: β, by how much the last layer's scale is larger.
    """
    return task_arithmetic(params, base, weights, scale=alpha / float(weights.sum()) + beta * depth)
