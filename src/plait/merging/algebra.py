"""Linear algebra that several rules share: regularised solutions, thin decompositions, inner products in pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.tensors import Parameter, Stack

ROUNDING = 1e-6
"""Singular values below this share of the greatest are what float32 storage rounded off."""
PIECE = 2**18


def solved(total: Tensor, shift: Tensor, damping: float) -> Tensor:
    """Returns X in (A + d·I) X = B for a symmetric A without negative eigenvalues, float64.

    Where A + d·I is singular to working precision, X is the solution of least norm.

    Args:
        total: A, [i, i]; changed.
        shift: B, [i, o].
        damping: d ≥ 0.
    """
    total.diagonal().add_(max(damping, torch.finfo(total.dtype).tiny))
    factor, failed = torch.linalg.cholesky_ex(total)
    pivots = factor.diagonal()
    if not int(failed) and bool(pivots.min() > 1e-7 * pivots.max()):
        return torch.cholesky_solve(shift, factor)
    nearest: Tensor = torch.linalg.pinv(total, hermitian=True) @ shift
    return nearest


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


def inner_products(params: Stack, origin: Parameter | None = None) -> Tensor:
    """Returns ⟨θ_i − o, θ_j − o⟩ in float64, [n, n], a piece at a time so that nothing large is copied."""
    result = torch.zeros(len(params), len(params), dtype=torch.float64)
    flat = params.reshape(len(params), -1)
    start = 0
    for piece in flat.split(PIECE, dim=1):
        entries = piece.double()
        if origin is not None:
            entries = entries - origin.reshape(-1)[start : start + entries.shape[1]]
        result.addmm_(entries, entries.T)
        start += entries.shape[1]
    return result
