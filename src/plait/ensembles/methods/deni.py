"""Delayed ensemble with noisy interpolation: a training that branches by noise and whose branches are averaged."""

from __future__ import annotations

from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Scalar


@METHODS.register(
    "deni",
    build="branches",
    plain=True,
    limits={"share": (0, 1), "noise": (0, 10), "rounds": (1, 1000)},
    paper="arXiv:2406.12471",
    when="One ordinary model from little more than one training.",
)
def deni(
    task: Scalar,
    *,
    share: float = 0.4,  # noqa: ARG001 (these are read by whoever trains the model)
    noise: float = 0.05,  # noqa: ARG001
    rounds: int = 2,  # noqa: ARG001
) -> Terms:
    """Returns the loss of the model that is trained, task(z, y), first one and then M branches of it.

    θ_j = θ + σ s ε_j, s the standard deviation of each tensor and ε_j ~ N(0, 1); each θ_j is trained by itself;
    θ ← (1/M) Σ_j θ_j; and so R times over. One model is written.

    Differs from the paper in the schedule, which its text leaves open for models with a falling rate: the trunk and
    every round have a warm-up and a fall of their own, a round at `share` of the highest rate; and in the noise, which
    goes to all tensors in proportion to their spread.

    Args:
        task: The loss of the model that is trained.
        share: The part of the epochs that the rounds of branches take, at the end.
        noise: σ.
        rounds: R, how often the training branches.
    """
    return {"task": task}
