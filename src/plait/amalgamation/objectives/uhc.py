"""The student imitates each teacher among that teacher's labels."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.amalgamation.objective import (
    OBJECTIVES,
    TEMPERATURES,
    Columns,
    Logits,
    Outputs,
    Terms,
    divergence,
    gathered,
)


@OBJECTIVES.register(
    "uhc",
    paper="arXiv:1904.06062",
    keep="none",
    limits={"temperature": TEMPERATURES},
    when="Teachers that share labels, without a gate.",
)
def uhc(
    student_logits: Logits, teacher_logits: Outputs, columns: Columns, *, temperature: float = 1.0
) -> Terms:
    """Returns the divergences of the student, renormalised on each teacher's labels, from that teacher.

    loss = T² · mean_b Σ_i KL(softmax(z_i / T) ‖ q_i),  q_i(c) = q(c) / Σ_{l ∈ L_i} q(l),  q = softmax(z / T)

    Nothing says how likely the labels of one teacher are against those of another: only texts on which a label is
    shared, or the habits of training, tell. Two labels of a teacher at one place of the union count as their sum.

    Differs from the paper in the divergence, which is cross-entropy there: the gradients are the same.

    Args:
        student_logits: z.
        teacher_logits: z_i.
        columns: the positions L_i of each teacher's labels in the union.
        temperature: T, of the teachers and of the student.
    """
    student = student_logits.float() / temperature
    pairs = zip(teacher_logits, columns, strict=True)
    each = [_within(student, torch.softmax(z.float() / temperature, -1), places) for z, places in pairs]
    return {"divergence": temperature**2 * torch.stack(each).sum(0).mean()}


def _within(student: Tensor, teacher: Tensor, columns: Tensor) -> Tensor:
    """Returns KL(p_i ‖ q_i) per text; a softmax over the teacher's labels alone is the renormalised one."""
    labels, places = torch.unique(columns.to(student.device), return_inverse=True)
    return divergence(gathered(teacher, places, len(labels)), student[:, labels])
