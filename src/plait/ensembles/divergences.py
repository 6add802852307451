"""What logits say by problem type: means, divergences, entropy, and targets mixed with labels."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plait.data import ProblemType
from plait.ensembles.shapes import Mask, MemberLogits, PerRow, Scalar, Values
from plait.errors import RecipeError, did_you_mean


def softened(
    teachers: MemberLogits,
    students: MemberLogits,
    problem: ProblemType,
    mask: Mask | None,
    temperature: float,
) -> Scalar:
    """Returns T² (1/M) Σ_j KL(teacher_j/T ‖ student_j/T), averaged over the rows that count, in float32.

    The factor T² keeps the size of the gradient. A number has no temperature: there it is ½ (z − z′)².
    """
    warmth = 1.0 if problem == "regression" else temperature
    first, second = read(teachers, problem).detach(), read(students, problem)
    rows = warmth**2 * divergence(first / warmth, second / warmth, problem).mean(0)
    if mask is None:
        return rows.mean()
    return rows.masked_fill(~mask.bool(), 0.0).sum() / mask.bool().sum().clamp(min=1)


def answers(teachers: MemberLogits, problem: ProblemType, temperature: float) -> MemberLogits:
    """Returns what teachers say, μ(z_k/T): probabilities, or numbers, which have no temperature."""
    warmth = 1.0 if problem == "regression" else temperature
    return means(read(teachers, problem) / warmth, problem)


def distance(targets: Values, students: Values, problem: ProblemType, temperature: float) -> PerRow:
    """Returns T² [task(z/T, t) − task at its least], the task's own loss with an answer t for a label, per row.

    Of one label that is T² KL(t ‖ softmax(z/T)), of several the mean over labels of the same for yes and no, of a
    number (z − t)². Unlike `softened`, it has the scale of the task's loss, so that the two can be mixed.

    Args:
        targets: t, as `answers` gives them.
        students: z, logits of the same shape.
        problem: What they mean.
        temperature: T; a regression has none.
    """
    t, z = targets.detach(), read(students, problem)
    if problem == "regression":
        squares: Tensor = (z - t).square().sum(-1)
        return squares
    if problem == "multi_label_classification":
        w = z / temperature
        least = torch.special.entr(t) + torch.special.entr(1 - t)
        rows: Tensor = (-(t * logsigmoid(w) + (1 - t) * logsigmoid(-w)) - least).mean(-1)
        return temperature**2 * rows
    logs = (z / temperature).log_softmax(-1)
    crossed: Tensor = -(torch.special.entr(t) + t * logs).sum(-1)
    return temperature**2 * crossed


def mixed(task: Scalar, rows: PerRow, labelled: Mask, mixture: float) -> tuple[Scalar, Scalar]:
    """Returns the two terms of targets that are (1 − λ) label + λ answer where there is a label, else answer alone.

    (1/B) Σ_{b labelled} (1 − λ) task_b  and  (1/B) Σ_b w_b d_b, w_b = λ where there is a label, else 1

    Args:
        task: The mean loss over the rows that have a label.
        rows: d_b, the distance from the teachers, members first: [M, B] or [B].
        labelled: Which rows have a label, [B].
        mixture: λ.
    """
    share = labelled.float().mean()
    weights = torch.where(labelled, mixture, 1.0).to(rows)
    return (1 - mixture) * share * task, (weights * rows).mean()


SINGLE: ProblemType = "single_label_classification"


def at_least_float32(values: Tensor) -> Tensor:
    """Returns the values in float32, or in float64 where they are: half precision cannot tell members apart."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def read(logits: Tensor, problem: ProblemType) -> MemberLogits:
    """Returns logits of members as [M, …, C] in at least float32; a regression may leave C out.

    Raises:
        RecipeError: When the problem type is unknown.
    """
    if problem not in get_args(ProblemType):
        raise RecipeError(f"unknown problem type {problem!r}{did_you_mean(problem, get_args(ProblemType))}")
    values = at_least_float32(logits)
    return values.unsqueeze(-1) if problem == "regression" and values.dim() == 2 else values


def means(z: Values, problem: ProblemType) -> Values:
    """Returns μ(z): softmax(z), σ(z) or z."""
    if problem == "regression":
        return z
    return z.sigmoid() if problem == "multi_label_classification" else z.softmax(-1)


def divergence(first: Values, second: Values, problem: ProblemType) -> PerRow:
    """Returns KL(p‖q) of the distributions that two logits define, per row, summed over labels.

    Σ_c p_c (log p_c − log q_c), the same for yes and no of every label, or ½(z − z′)².
    """
    if problem == "regression":
        return (first - second).square().sum(-1) / 2
    if problem == "multi_label_classification":
        yes: Tensor = first.sigmoid() * (logsigmoid(first) - logsigmoid(second))
        no = (-first).sigmoid() * (logsigmoid(-first) - logsigmoid(-second))
        return (yes + no).sum(-1)
    logs: Tensor = first.log_softmax(-1)
    terms: Tensor = logs.exp() * (logs - second.log_softmax(-1))
    return terms.sum(-1)


def entropy(probabilities: Values, problem: ProblemType) -> PerRow:
    """Returns −Σ_c p_c log p_c per row, or the entropies of yes and no summed over labels; nats.

    Raises:
        RecipeError: For a regression, whose members all have the same entropy.
    """
    if problem == "regression":
        raise RecipeError("a regression has no entropy over labels; look at the members' variance instead")
    counts: Tensor = torch.special.entr(probabilities)
    if problem == "multi_label_classification":
        counts = counts + torch.special.entr(1 - probabilities)
    return counts.sum(-1)
