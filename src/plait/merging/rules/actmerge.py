"""ActMerge: RegMean without data, the task vectors themselves standing for the inputs that made them."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.merging.algebra import solved
from plait.merging.rule import RULES, Law, task_vectors, weighted_sum
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "actmerge",
    paper="arXiv:2604.01329",
    laws={Law.IDEMPOTENT, Law.SYMMETRIC, Law.ANCHORED},
    limits={"ridge": (1e-8, 1e8)},
    search={"ridge": (1e-4, 10.0)},
    elsewhere="average",
    when="Base at hand: the most accurate method that needs no data.",
)
def actmerge(params: Stack, base: Parameter, weights: Coefficients, *, ridge: float = 0.1) -> Parameter:
    """Returns RegMean's weight with Gram matrices that come from the task vectors, for linear weights of layers.

    θ = θ_0 + τ̄ + (Σ_j λ_j (τ_j − τ̄) G_j) (Σ_j λ_j G_j + r·m·I)⁻¹,  τ_j = θ_j − θ_0,  G_j = τ_jᵀ τ_j,
    τ̄ = Σ_j λ_j τ_j / Σ_j λ_j,  m = mean diag Σ_j λ_j G_j

    A gradient step changes W by (output gradients)ᵀ(inputs), so that the rows of τ_j lie where the inputs of task j lie
    and G_j stands for their Gram matrix. All other parameters get the λ-average. Only the ratios of λ count.

    Differs from the paper in the ridge r, which pulls directions that no task changed towards the average: task vectors
    are nearly of low rank, and without a ridge (1e-6) six merged tasks kept less than half of their accuracy in
    directions that are rounding. It is relative, so multiplying all task vectors by one number changes nothing in it.

    Args:
        params: the parameter of the sources, [n, out, in].
        base: θ_0.
        weights: λ.
        ridge: r.
    """
    changes, shares = task_vectors(params, base, weights)
    return (base + regression(changes, shares, shares, ridge)).to(base.dtype)


def regression(changes: list[Tensor], shares: list[float], counts: list[float], ridge: float) -> Tensor:
    """Returns τ̄ + (Σ_j c_j (τ_j − τ̄) τ_jᵀτ_j) (Σ_j c_j τ_jᵀτ_j + r·mean diag·I)⁻¹, τ̄ the mean by shares.

    With S the rows of all √c_j τ_j, the inverse is that of SᵀS + d·I. Where there are fewer rows than columns,
    S (SᵀS + d·I)⁻¹ = (SSᵀ + d·I)⁻¹ S is exactly the same and smaller.
    """
    mean = weighted_sum(changes, shares) / sum(shares)
    out, width = mean.shape
    squares = [count * float(change.square().sum()) for change, count in zip(changes, counts, strict=True)]
    damping = ridge * sum(squares) / width
    if len(changes) * out < width:
        rows = torch.cat([change * count**0.5 for change, count in zip(changes, counts, strict=True)])
        pulls = torch.cat(
            [(c - mean) @ c.T * count**0.5 for c, count in zip(changes, counts, strict=True)], dim=1
        )
        return mean + solved(rows @ rows.T, pulls.T, damping).T @ rows
    total, shift = mean.new_zeros(width, width), mean.new_zeros(out, width)
    for change, count in zip(changes, counts, strict=True):
        total.addmm_(change.T, change, alpha=count)
        shift.add_(torch.linalg.multi_dot([change - mean, change.T, change]), alpha=count)
    return mean + solved(total, shift.T, damping).T
