"""Co-distillation: separate models that learn side by side, each from the others."""

from __future__ import annotations

from plait.data import ProblemType
from plait.ensembles.divergences import read, softened
from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Mask, MemberLogits, Scalar
from plait.registry import Above


@METHODS.register(
    "codistillation",
    build="joint",
    limits={"temperature": Above(0)},
    paper="arXiv:1804.03235",
    when="M separate models that are trained side by side and can all be kept.",
)
def codistillation(
    task: Scalar,
    logits: MemberLogits,
    problem: ProblemType,
    mask: Mask | None,
    alpha: float,
    *,
    temperature: float = 1.0,
) -> Terms:
    """Returns the models' losses and the distance of each from the mean of the others.

    (1/M) Σ_j [task(z_j, y) + α T² KL(softmax(z̄_{¬j}/T) ‖ softmax(z_j/T))], z̄_{¬j} the mean logits of the others
    (alg. 1)

    The others are held still. Differs from the paper in following them from the first step on, and at every step.

    Args:
        task: The models' mean loss.
        logits: Of all models.
        problem: What the logits mean.
        mask: The rows that count.
        alpha: α.
        temperature: T; a regression has none.
    """
    members = len(logits)
    z = read(logits, problem)
    others = (z.sum(0, keepdim=True) - z) / max(members - 1, 1)
    learnt = softened(others if members > 1 else z, logits, problem, mask, temperature)
    return {"task": task, "distillation": alpha * learnt}
