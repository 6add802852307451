"""ISO-C and ISO-CTS: the merged task vector with all its directions equally strong."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.merging.algebra import orthonormal, thin_svd
from plait.merging.rule import RULES, Law, task_vectors
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "iso",
    paper="arXiv:2502.04959",
    laws={Law.SYMMETRIC, Law.ANCHORED},
    limits={"common": (0.0, 1.0)},
    search={"common": (0.0, 1.0), "scale": (0.1, 3.0)},
    elsewhere="average",
    when="Base at hand, and many tasks of equal weight.",
)
def iso(
    params: Stack, base: Parameter, weights: Coefficients, *, common: float = 1.0, scale: float = 1.0
) -> Parameter:
    """Returns the base plus the sum of task vectors with its singular values levelled, for linear weights of layers.

    Σ_j λ_j τ_j = U Σ Vᵀ,  θ = θ_0 + s σ̄ U Vᵀ,  σ̄ the mean of the r = min(out, in) singular values   (ISO-C)

    With c < 1 (ISO-CTS, 0.8 as published) the first r − kT directions are those of the sum, the rest the k strongest of
    each of the T tasks outside them, k = (1 − c) r / T rounded: of λ_j (τ_j − U_c U_cᵀ τ_j), U_c the former. All are
    made orthogonal together and σ̄ is the mean of their singular values.

    All other parameters get the λ-average. The paper picks s on validation data, between 0.9 and 1.5 in its tables.

    Differs from the paper where the sum has no full rank: directions that it lacks stay away instead of being chosen by
    rounding.

    Args:
        params: the parameter of the sources, [n, out, in].
        base: θ_0.
        weights: λ, 1 per source unless given.
        common: c.
        scale: s.
    """
    changes, shares = task_vectors(params, base, weights)
    scaled = [change * share for change, share in zip(changes, shares, strict=True)]
    rank = min(base.shape)
    own = min(int((1.0 - common) * rank / len(scaled) + 0.5), rank // len(scaled))
    found = _directions(scaled, rank, own)
    left, right = (orthonormal(torch.cat([part[side] for part in found], dim=1)) for side in (0, 2))
    level = sum(float(part[1].sum()) for part in found) / rank
    return (base + scale * level * left @ right.T).to(base.dtype)


def _directions(scaled: list[Tensor], rank: int, own: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Returns the singular directions of the sum, but for those that make room for `own` of each task, and these."""
    total = torch.stack(scaled).sum(0)
    first = thin_svd(total, rank - own * len(scaled))
    if not own:
        return [first]
    shared = first[0]
    return [first, *(thin_svd(change - shared @ (shared.T @ change), own) for change in scaled)]
