"""WUDI in closed form: the merged task vector that disturbs no task where that task was changed."""

from __future__ import annotations

from plait.merging.rule import RULES, Law, task_vectors
from plait.merging.rules.actmerge import regression
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "wudi",
    paper="arXiv:2503.08099",
    laws={Law.IDEMPOTENT, Law.SYMMETRIC, Law.ANCHORED},
    limits={"ridge": (1e-8, 1e8)},
    search={"ridge": (1e-4, 10.0)},
    elsewhere="average",
    when="Base at hand, and tasks of very different strength that should count the same.",
)
def wudi(params: Stack, base: Parameter, weights: Coefficients, *, ridge: float = 1e-2) -> Parameter:
    """Returns the task vector of least interference with every source's, for linear weights of layers.

    τ minimises Σ_j λ_j ‖(τ − τ_j) τ_jᵀ‖² / ‖τ_j‖², which is solved by
    τ = τ̄ + (Σ_j λ_j (τ_j − τ̄) G_j) (Σ_j λ_j G_j + r·m·I)⁻¹,  G_j = τ_jᵀτ_j / ‖τ_j‖²,  τ̄ = Σ_j λ_j τ_j / Σ_j λ_j,
    m = mean diag Σ_j λ_j G_j,  θ = θ_0 + τ

    This is `actmerge` with every task counting the same however far it moved. All other parameters get the λ-average.

    Differs from the paper, which takes 300 steps of Adam from Σ_j τ_j and leaves the sources' rounding out by stopping
    early. The closed form needs a ridge r instead: at 1e-6 it fits rounding and merged encoders fell below half of
    their sources' accuracy.

    Args:
        params: the parameter of the sources, [n, out, in].
        base: θ_0.
        weights: λ; only their ratios count.
        ridge: r.
    """
    changes, shares = task_vectors(params, base, weights)
    squares = [float(change.square().sum()) for change in changes]
    counts = [share / square if square > 0 else 0.0 for share, square in zip(shares, squares, strict=True)]
    return (base + regression(changes, shares, counts, ridge)).to(base.dtype)
