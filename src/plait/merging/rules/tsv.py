"""TSV-M: the strongest singular directions of every task, made orthogonal to one another and summed."""

from __future__ import annotations

import torch

from plait.merging.algebra import orthonormal, thin_svd
from plait.merging.rule import RULES, Law, task_vectors
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "tsv",
    paper="arXiv:2412.00081",
    laws={Law.SYMMETRIC, Law.ANCHORED},
    search={"scale": (0.1, 3.0)},
    elsewhere="average",
    when="Base at hand, no data, and many tasks: a sturdy second choice after actmerge.",
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
