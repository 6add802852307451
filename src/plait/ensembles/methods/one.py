"""On-the-fly distillation: members of one model learn from what they say together."""

from __future__ import annotations

from torch import Tensor

from plait.data import ProblemType
from plait.ensembles.divergences import read, softened
from plait.ensembles.method import METHODS, Terms
from plait.ensembles.modeling import task_loss
from plait.ensembles.shapes import Mask, MemberLogits, Scalar
from plait.registry import Above


@METHODS.register(
    "one",
    build="shared",
    limits={"temperature": Above(0)},
    paper="arXiv:1806.04606",
    when="Members over one encoder that learn from their own mean.",
)
def one(  # noqa: PLR0917 (inputs by name)
    task: Scalar,
    logits: MemberLogits,
    labels: Tensor,
    problem: ProblemType,
    mask: Mask | None,
    alpha: float,
    *,
    temperature: float = 3.0,
) -> Terms:
    """Returns the members' losses, that of their mean, and their distance from it.

    (1/M) Σ_j task(z_j, y) + task(z̄, y) + α T² (1/M) Σ_j KL(softmax(z̄/T) ‖ softmax(z_j/T))  (eq. 8)

    The mean is held still as a teacher. Differs from the paper in the mean, which there is weighted by a learnt gate,
    and in the members' losses, which there are summed: so α and the learning rate mean here what they do in CAMERO.

    Args:
        task: The members' mean loss.
        logits: Of all members.
        labels: The labels.
        problem: What the logits mean.
        mask: The rows that count.
        alpha: α.
        temperature: T; a regression has none.
    """
    teacher = read(logits, problem).mean(0, keepdim=True)
    mean = task_loss(teacher.reshape(1, *logits.shape[1:]), labels, problem)
    learnt = softened(teacher.expand(len(logits), *teacher.shape[1:]), logits, problem, mask, temperature)
    return {"task": task, "mean_task": mean, "distillation": alpha * learnt}
