"""Members that learn from each other: a softened divergence from teachers that are held still."""

from __future__ import annotations

from plait.data import ProblemType
from plait.ensembles.outputs import divergence, read
from plait.ensembles.shapes import Mask, MemberLogits, Scalar


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
