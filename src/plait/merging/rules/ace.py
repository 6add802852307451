"""ACE-Merging: RegMean with covariances estimated from task vectors, its strongest directions levelled."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plait.merging.algebra import solved, thin_svd
from plait.merging.rule import RULES, Law, task_vectors, weighted_sum
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "ace",
    paper="arXiv:2603.02945",
    laws={Law.SYMMETRIC, Law.ANCHORED},
    limits={"ridge": (1e-8, 1e8), "spread": (0.0, 1e6), "level": (0.0, 1.0)},
    search={"ridge": (1e-3, 10.0), "spread": (0.0, 2.0), "level": (0.0, 1.0)},
    elsewhere="average",
    when="Base at hand, no data, and actmerge falls short on a task.",
)
def ace(
    params: Stack,
    base: Parameter,
    weights: Coefficients,
    *,
    ridge: float = 4e-2,
    spread: float = 0.3,
    level: float = 0.3,
) -> Parameter:
    """Returns the weight fitted to covariances of the task vectors' rows, for linear weights of layers.

    C_j = (τ_j − 1μ_j)ᵀ(τ_j − 1μ_j), μ_j the mean of the rows;  divided by its trace where the standard deviation of
    log ‖τ_j‖ over the tasks is above κ;  P = ε (diag C + mean diag C · I) / 2 with C = Σ_j λ_j C_j, a prior that all
    tasks share;  τ = τ̄ + (Σ_j λ_j (τ_j − τ̄) C_j)(C + P)⁻¹;  of the singular values of τ the greatest q·r, rounded up,
    are set to their mean;  θ = θ_0 + τ

    All other parameters get the λ-average; only the ratios of λ count.

    Differs from the paper in the prior, which there comes from column means in a way that its description leaves open,
    and in ε, which is relative here and is chosen per family there. κ is compared tensor by tensor.

    Args:
        params: the parameter of the sources, [n, out, in].
        base: θ_0.
        weights: λ.
        ridge: ε.
        spread: κ.
        level: q, the share of singular values that are levelled.
    """
    changes, shares = task_vectors(params, base, weights)
    mean = weighted_sum(changes, shares) / sum(shares)
    covariances = [centred.T @ centred for centred in (change - change.mean(0) for change in changes)]
    if _log_spread(changes) > spread:
        covariances = [c / c.trace() if c.trace() > 0 else c for c in covariances]
    width = base.shape[1]
    total, shift = mean.new_zeros(width, width), mean.new_zeros(*mean.shape)
    for change, covariance, share in zip(changes, covariances, shares, strict=True):
        total.add_(covariance, alpha=share)
        shift.add_((change - mean) @ covariance, alpha=share)
    typical = float(total.diagonal().mean())
    total.diagonal().mul_(1 + ridge / 2)
    merged = mean + solved(total, shift.T, ridge / 2 * typical).T
    return (base + levelled(merged, level)).to(base.dtype)


def _log_spread(changes: list[Tensor]) -> float:
    norms = torch.stack([change.norm() for change in changes])
    logarithms = norms[norms > 0].log()
    return float(logarithms.std(correction=0)) if len(logarithms) else 0.0


def levelled(matrix: Tensor, share: float) -> Tensor:
    """Returns a matrix whose greatest singular values, that share of them, are replaced by their mean."""
    count = math.ceil(share * min(matrix.shape) - 1e-9)
    left, values, right = thin_svd(matrix, count)
    # What decomposition drops as rounding was counted as zero.
    change = values.sum() / max(count, 1) - values
    return matrix + (left * change) @ right.T
