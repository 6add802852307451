"""SVC: task arithmetic, its singular values shrunk where several tasks pull the same way."""

from __future__ import annotations

import torch

from plait.merging.algebra import thin_svd
from plait.merging.rule import RULES, Law, task_vectors, weighted_sum
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "svc",
    paper="arXiv:2602.05536",
    laws={Law.SYMMETRIC, Law.ANCHORED},
    limits={"alpha": (0.0, 1e6)},
    search={"alpha": (0.0, 4.0), "scale": (0.05, 1.5)},
    elsewhere="task_arithmetic",
    when="Base at hand, and tasks that pull the same way are counted twice.",
)
def svc(
    params: Stack, base: Parameter, weights: Coefficients, *, alpha: float = 1.0, scale: float = 0.4
) -> Parameter:
    """Returns the base plus the scaled sum of task vectors, calibrated direction by direction.

    Δ = s Σ_j λ_j τ_j = U Σ Vᵀ;  for each left singular direction u:  s_j = ⟨uᵀΔ, uᵀτ_j⟩ / ‖uᵀτ_j‖²  says how much of
    source j's response the merge has there;  γ = Σ λ_j / Σ_j λ_j max(α/K, s_j);  θ = θ_0 + Σ_u γ_u σ_u u vᵀ

    for linear weights of layers; all others get `task_arithmetic` of the same s. K counts the sources whose λ is not 0.
    A direction along which a source does not move has s_j = 0. Where every s_j is above its floor, s cancels out.

    Differs from the paper in the λ: one of 2 is as if the source were given twice, but for K.

    Args:
        params: the parameter of the sources, [n, out, in].
        base: θ_0.
        weights: λ, 1 per source unless given.
        alpha: α, the floor under s_j in units of 1/K.
        scale: s.
    """
    changes, shares = task_vectors(params, base, weights)
    left, values, right = thin_svd(scale * weighted_sum(changes, shares))
    merged = (right * values).T
    counted = torch.zeros_like(values)
    for change, share in zip(changes, shares, strict=True):
        response = left.T @ change
        squares = response.square().sum(1)
        part = (merged * response).sum(1) / squares.clamp(min=torch.finfo(squares.dtype).tiny)
        counted.add_(part.clamp(min=alpha / len(changes)), alpha=share)
    calibrated = values * sum(shares) / counted.clamp(min=torch.finfo(counted.dtype).tiny)
    return (base + (left * calibrated) @ right.T).to(base.dtype)
