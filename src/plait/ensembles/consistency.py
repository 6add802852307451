"""What holds the members together: the mean symmetric divergence to the ensemble, or over pairs of members.

For every problem type with label mean μ(z), SymKL(p, q) = KL(p‖q) + KL(q‖p) = Σ_c (μ_c(z) − μ_c(z′)) (z_c − z′_c): the
log-partition functions cancel. Summed to the mean logits this is the covariance, over members, of means and logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from plait.data import ProblemType
from plait.ensembles.divergences import SINGLE, means, read
from plait.ensembles.shapes import Mask, MemberLogits, PerRow, Scalar
from plait.errors import RecipeError
from plait.registry import Registry

Consistency = Callable[..., Scalar]
CONSISTENCIES: Registry[Consistency] = Registry("consistency", plugins="plait.consistencies")
PAPER = "arXiv:2204.06625"


def spread(
    logits: MemberLogits,
    problem: ProblemType = SINGLE,
    mask: Mask | None = None,
    *,
    detach: bool = False,
) -> PerRow:
    """Returns per example (or token) the mean symmetric divergence of the members from their mean logits.

    R = (1/M) Σ_j SymKL(p_j, softmax(z̄)) = (1/M) Σ_j Σ_c (p_jc − p̄_c) (z_jc − z̄_c)

    With Gaussian outputs that is the population variance. Both factors are centred, so nothing cancels when the
    members agree to many digits; in float32 whatever the logits' dtype (float64 stays). Rows outside the mask are 0,
    and no NaN there reaches a gradient.

    Differs from the paper where `detach` stops the gradient of the mean: p̄ then is softmax(z̄), because the two forms
    agree in value but not in their derivative with z̄ held fixed.
    """
    z = read(logits, problem)
    if mask is not None:
        z = z.masked_fill(~mask.bool().unsqueeze(-1), 0.0)
    if problem == SINGLE:
        # A softmax does not see a constant on all classes; without it, members far apart keep their digits.
        z = z - z.mean(-1, keepdim=True).detach()
    mean, expected = z.mean(0), means(z, problem)
    if detach:
        mean = mean.detach()
    middle = means(mean, problem) if detach else expected.mean(0)
    return ((expected - middle) * (z - mean)).sum(-1).mean(0)


@CONSISTENCIES.register(
    "ensemble",
    paper=PAPER,
    when="Start here: cost grows with the number of members.",
)
def ensemble(
    logits: MemberLogits,
    problem: ProblemType = SINGLE,
    mask: Mask | None = None,
    *,
    detach: bool = False,
) -> Scalar:
    """Returns the mean symmetric KL divergence of the members from the ensemble.

    R = (1/M) Σ_j SymKL(p_j, softmax(z̄)), averaged over examples or over the tokens that count

    One member has nobody to disagree with: 0.

    Args:
        logits: of all members.
        problem: what they mean: a class of C, labels one by one (summed), or a number (variance over members).
        mask: the rows that count, [B] or [B, T]; all by default.
        detach: hold the ensemble still, so that only the members move towards it.
    """
    rows = spread(logits, problem, mask, detach=detach)
    if mask is None:
        return rows.mean()
    return rows.sum() / mask.bool().expand(rows.shape).sum().clamp(min=1)


@CONSISTENCIES.register(
    "pairwise",
    paper=PAPER,
    when="To reproduce the paper; the same up to a factor of alpha.",
)
def pairwise(
    logits: MemberLogits,
    problem: ProblemType = SINGLE,
    mask: Mask | None = None,
    *,
    detach: bool = False,
) -> Scalar:
    """Returns the mean symmetric KL divergence over all pairs of members.

    R = 2 / (M (M−1)) Σ_{i<j} SymKL(p_i, p_j) = 2M/(M−1) · R_ensemble, in value and in gradient

    The second form is what is computed: M terms instead of M(M−1)/2.

    Args:
        logits: of all members.
        problem: what they mean.
        mask: the rows that count.
        detach: hold the ensemble still, as in `ensemble`; it is not the members that are held still, pair by pair.
    """
    return ensemble(logits, problem, mask, detach=detach) * _pairs(logits.shape[0])


@CONSISTENCIES.register(
    "none",
    when="Members that should differ as much as they can.",
)
def none(logits: MemberLogits) -> Scalar:
    """Returns 0: the members go their own ways."""
    return logits.new_zeros(())


def rate(consistency: str, alpha: float, members: int, *, to: str = "ensemble") -> float:
    """Returns the α with which the regulariser `to` equals `consistency` with `alpha`: α_e = 2M/(M−1) α_p.

    0 where either is `none`, or where one member leaves nothing to regularise.

    Raises:
        RecipeError: When a name is unknown, `alpha` is negative or not finite, or `members` is less than 1.
    """
    if not (math.isfinite(alpha) and alpha >= 0):
        raise RecipeError(f"alpha is {alpha}; expected a number, 0 or greater")
    if members < 1:
        raise RecipeError(f"members is {members}; expected 1 or more")
    factors = {"ensemble": 1.0 if members > 1 else 0.0, "pairwise": _pairs(members), "none": 0.0}
    source, target = factors[CONSISTENCIES[consistency].name], factors[CONSISTENCIES[to].name]
    return alpha * source / target if target else 0.0


def _pairs(members: int) -> float:
    return 2 * members / (members - 1) if members > 1 else 0.0
