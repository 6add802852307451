"""The student imitates the teachers that the gate found competent."""

from __future__ import annotations

from plait.amalgamation.objective import OBJECTIVES, TEMPERATURES, Logits, Target, Terms, Weights, divergence


@OBJECTIVES.register("muka", paper="arXiv:2112.07327", keep="none", limits={"temperature": TEMPERATURES})
def muka(student_logits: Logits, target: Target, weight: Weights, *, temperature: float = 1.0) -> Terms:
    """Returns the divergence of the student from the target, weighted by how clear the choice of the teacher was.

    loss = mean_b v_b · KL(p̃_b ‖ softmax(z_b / T))

    p̃ and v come from `targets` and `routing`; v = 1 leaves the weighting out. Weights are not normalised, as in the
    paper: a corpus of unclear choices moves the student little. With one-hot targets and v = 1 it is supervised
    training.

    Args:
        student_logits: z.
        target: p̃.
        weight: v.
        temperature: T; the target is made with it too (p_i = softmax(z_i / T); a Monte Carlo mean stays as it is).
    """
    return {"divergence": (weight.float() * divergence(target, student_logits.float() / temperature)).mean()}
