"""Averaging weighted by how much each entry matters to its source."""

from __future__ import annotations

import torch

from plait.merging.rule import RULES, Law
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register(
    "fisher",
    paper="arXiv:2111.09832",
    laws={Law.IDEMPOTENT, Law.SYMMETRIC, Law.BOUNDED, Law.ELEMENTWISE, Law.SCALE_FREE, Law.PROPAGATES},
    limits={"floor": (0.0, 1.0)},
    search={"floor": (1e-8, 1.0)},
    when="Labelled data of every source, or importances that somebody shares in place of data.",
)
def fisher(
    params: Stack, importances: Stack, typical: Coefficients, weights: Coefficients, *, floor: float = 1e-6
) -> Parameter:
    """Returns the mean of the sources weighted by λ and by importance, entry by entry.

    θ = Σ_j λ_j D_j θ_j / Σ_j λ_j D_j,  D_j = max(F_j / m, ε),  m = max_j mean(F_j)   (eq. 3 with a relative floor)

    Entries about which no source knows anything (every F_j below ε·m, or a parameter without importances) get the
    λ-average.

    Differs from the paper in the floor: 1e-6 there is absolute and applied after dividing by the norm of the whole
    model. Fisher values span many orders of magnitude (1e-12 is ordinary), so an absolute floor turns whole tensors
    into plain averages for one loss and never acts for another. Ours is relative to the mean importance m of this
    parameter in the source where that is greatest: multiplying all importances by one number changes nothing, small
    ones neither vanish nor underflow, and since only values below ε of the typical one are touched, everything that
    carries information follows the formula exactly.

    Args:
        params: the parameter of the sources.
        importances: F_j ≥ 0, broadcastable to the parameter.
        typical: the mean of each source's F over the parameter.
        weights: λ.
        floor: ε, as a share of the mean importance.
    """
    # A source without a say must not decide what is too small to count.
    scale = typical[weights > 0].max()
    if not scale > 0:
        informed = torch.ones_like(importances)
    else:
        informed = (importances / scale).clamp_(min=max(floor, torch.finfo(torch.float32).tiny))
    informed = informed * weights.reshape(-1, *[1] * (informed.dim() - 1))
    # One source after the other: torch adds five and more in an order that depends on the size of the piece.
    total, result = informed[0].clone(), params[0] * informed[0]
    for parameter, share in zip(params[1:], informed[1:], strict=True):
        total.add_(share)
        result.addcmul_(parameter, share)
    return result.div_(total)
