"""Hydra: one encoder with a head for each member of an ensemble, which learns what that member says."""

from __future__ import annotations

from plait.data import ProblemType
from plait.ensembles.divergences import answers, distance, mixed
from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Mask, MemberLogits, Scalar


@METHODS.register(
    "hydra",
    build="taught",
    limits={"mixture": (0, 1), "temperature": (0.1, 100)},
    paper="arXiv:2001.04694",
    when="One encoder that keeps the members apart, for uncertainty at the price of one pass.",
)
def hydra(
    task: Scalar,
    logits: MemberLogits,
    teachers: MemberLogits,
    problem: ProblemType,
    labelled: Mask,
    *,
    mixture: float = 1.0,
    temperature: float = 1.0,
) -> Terms:
    """Returns how far each head is from the member that it stands for.

    (1/MB) Σ_m Σ_b [(1 − λ) task(z_mb, y_b) + λ T² (task(z_mb/T, y_mb) − task at its least)],  y_mb = μ(t_mb/T)

    For single labels and λ = 1 that is the mean of T² KL(softmax(t_m/T) ‖ softmax(z_m/T))  (eq. 3). A text without a
    label has λ = 1. Differs from the paper in that all heads learn at once from the start on.

    Args:
        task: The heads' mean loss on the rows that have a label.
        logits: Of the heads.
        teachers: t_m, of the members, in the order of the heads.
        problem: What the logits mean.
        labelled: The rows that have a label.
        mixture: λ, the share of the member's answer in the target of a text that has a label.
        temperature: T; a regression has none.
    """
    told = answers(teachers, problem, temperature)
    first, second = mixed(task, distance(told, logits, problem, temperature), labelled, mixture)
    return {"task": first, "distillation": second}
