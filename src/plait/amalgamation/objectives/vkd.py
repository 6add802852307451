"""The student imitates all teachers' logits side by side."""

from __future__ import annotations

import torch

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
    "vkd",
    paper="arXiv:1503.02531",
    keep="none",
    limits={"temperature": TEMPERATURES},
    when="Baseline: plain distillation from all teachers on every text.",
)
def vkd(
    student_logits: Logits, teacher_logits: Outputs, columns: Columns, *, temperature: float = 1.0
) -> Terms:
    """Returns the divergence of the student from the softmax over all teachers' logits: vanilla distillation.

    loss = T² · mean_b KL(softmax(concat_i z_i / T) ‖ softmax(z / T))

    A label that several teachers have gets the sum of its probabilities. At T = 1 this is `muka` with the soft target
    of the gate `energy` at temperature 1 and weights 1. T² keeps the size of the gradients, as Hinton et al. do.

    Differs from the baseline in the authors' program of MUKI in T, which is 5 there.

    Args:
        student_logits: z.
        teacher_logits: z_i.
        columns: the positions of each teacher's labels in the union.
        temperature: T, of the teachers and of the student.
    """
    together = torch.cat([logits.float() for logits in teacher_logits], -1) / temperature
    target = gathered(torch.softmax(together, -1), torch.cat(list(columns)), student_logits.shape[-1])
    return {"divergence": temperature**2 * divergence(target, student_logits.float() / temperature).mean()}
