"""Distillation of an ensemble: M separate models teach one ordinary model."""

from __future__ import annotations

from typing import Literal

from plait.data import ProblemType
from plait.ensembles.divergences import answers, distance, mixed
from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Mask, MemberLogits, Scalar


@METHODS.register(
    "distilled",
    build="taught",
    plain=True,
    limits={"mixture": (0, 1), "temperature": (0.1, 100)},
    paper="arXiv:1503.02531",
    when="One ordinary model that comes close to M separate ones; texts without labels help.",
)
def distilled(
    task: Scalar,
    logits: MemberLogits,
    teachers: MemberLogits,
    problem: ProblemType,
    labelled: Mask,
    *,
    mixture: float = 0.5,
    temperature: float = 1.0,
    start: Literal["base", "soup"] = "base",  # noqa: ARG001 (read by whoever builds the model)
) -> Terms:
    """Returns the student's loss for labels and for the members' mean answer ȳ, both in the measure of the task's loss.

    (1/B) Σ_b [(1 − λ) task(z_b, y_b) + λ T² (task(z_b/T, ȳ_b) − task at its least)],  ȳ_b = (1/M) Σ_m μ(z_mb/T)

    A text without a label has λ = 1. Differs from the paper (section 2) in the mean, here of probabilities instead of
    logits: that is what an ensemble says, and its NLL is the lower where members contradict each other.

    Args:
        task: The loss of the rows that have a label.
        logits: Of the student, the only member.
        teachers: Of the members.
        problem: What the logits mean.
        labelled: The rows that have a label.
        mixture: λ, the share of the members' answer in the target of a text that has a label.
        temperature: T; a regression has none.
        start: Where the student starts: the base, or the mean of the members' weights, which then start alike.
    """
    told = answers(teachers, problem, temperature).mean(0, keepdim=True)
    first, second = mixed(task, distance(told, logits, problem, temperature), labelled, mixture)
    return {"task": first, "distillation": second}
