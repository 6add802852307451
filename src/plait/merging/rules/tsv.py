"""TSV-M: the strongest singular directions of every task, made orthogonal to one another and summed."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.merging.rule import RULES, Law, task_vectors
from plait.tensors import Coefficients, Parameter, Stack

ROUNDING = 1e-6
"""Singular values below this share of the greatest are what float32 storage rounded off."""


@RULES.register(
    "tsv",
    paper="arXiv:2412.00081",
    laws={Law.SYMMETRIC, Law.ANCHORED},
    elsewhere="average",
)
def tsv(params: Stack, base: Parameter, weights: Coefficients, *, scale: float = 1.0) -> Parameter:
    """Returns the base plus the sum of the tasks' strongest singular directions, for linear weights of layers.

    τ_j ≈ U_j Σ_j V_jᵀ with ⌊r / T⌋ (at least one) of the r = min(out, in) directions;  U = [U_1 … U_T] and V likewise
    are replaced by the nearest matrices with orthonormal columns, U (UᵀU)^(−1/2);  θ = θ_0 + s U⊥ diag(λ_j Σ_j) V⊥ᵀ

    All other parameters get the λ-average. One source comes back as it is. T counts the sources whose λ is not 0.

    Differs from the paper where directions of several tasks coincide, so that UᵀU has no full rank: there the published
    P Qᵀ of the singular value decomposition U = P D Qᵀ adds directions that no task has, ours shares the one direction
    out among them.

    Args:
        params: the parameter of the sources, [n, out, in].
        base: θ_0.
        weights: λ, 1 per source unless given.
        scale: s.
    """
    changes, shares = task_vectors(params, base, weights)
    keep = max(1, min(base.shape) // len(changes))
    found = [thin_svd(change, keep) for change in changes]
    left = orthonormal(torch.cat([u for u, _, _ in found], dim=1))
    right = orthonormal(torch.cat([v for _, _, v in found], dim=1))
    values = torch.cat([s * share for (_, s, _), share in zip(found, shares, strict=True)])
    return (base + scale * (left * values) @ right.T).to(base.dtype)


def thin_svd(matrix: Tensor, keep: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns U [out, k], the singular values in falling order and V [in, k], without those that are rounding.

    From the eigenvectors of the smaller Gram matrix, several times quicker than a singular value decomposition; in
    float64 its loss of precision lies far below the rounding that is cut off.

    Args:
        matrix: float64, [out, in].
        keep: k at most.
    """
    if matrix.shape[0] < matrix.shape[1]:
        v, s, u = thin_svd(matrix.T, keep)
        return u, s, v
    right = torch.linalg.eigh(matrix.T @ matrix).eigenvectors.flip(1)[:, :keep]
    left = matrix @ right
    values = left.norm(dim=0)
    real = values > ROUNDING * values[:1]
    return left[:, real] / values[real], values[real], right[:, real]


def orthonormal(columns: Tensor) -> Tensor:
    """Returns C (CᵀC)^(−1/2), the nearest matrix with orthonormal columns; directions that C lacks stay away."""
    wide = columns.shape[1] > columns.shape[0]
    if not columns.shape[1]:
        return columns
    values, vectors = torch.linalg.eigh(columns @ columns.T if wide else columns.T @ columns)
    # Eigenvalues are squares of singular values, known to 1e-16 of the greatest.
    real = values > 1e-10 * values[-1]
    root = (vectors[:, real] * values[real].rsqrt()) @ vectors[:, real].T
    result: Tensor = root @ columns if wide else columns @ root
    return result
