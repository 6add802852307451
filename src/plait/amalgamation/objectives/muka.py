"""The student imitates the teachers that the gate found competent."""

from __future__ import annotations

import torch

from plait.amalgamation.objective import OBJECTIVES, TEMPERATURES, Logits, Target, Terms, Weights, divergence


@OBJECTIVES.register(
    "muka",
    paper="arXiv:2112.07327",
    keep="none",
    limits={"temperature": TEMPERATURES, "selected": (0.01, 1.0), "bootstrap": (0.0, 1.0)},
    when="Start here: the only objective that uses the gate.",
)
def muka(
    student_logits: Logits,
    target: Target,
    weight: Weights,
    *,
    temperature: float = 1.0,
    selected: float = 1.0,
    bootstrap: float = 0.0,
) -> Terms:
    """Returns the divergence of the student from the target, weighted by how clear the choice of the teacher was.

    loss = mean_b v_b · KL(p̃_b ‖ softmax(z_b / T))

    p̃ and v come from `targets` and `routing`; v = 1 leaves the weighting out. Weights are not normalised, as in the
    paper: a corpus of unclear choices moves the student little. With one-hot targets and v = 1 it is supervised
    training.

    For targets that are wrong now and then, which a student learns last: `selected` leaves the share ρ of a batch that
    it finds easiest (small-loss selection, arXiv:1804.06872), `bootstrap` believes the student itself by a share β
    (arXiv:1412.6596): p̃ ← (1 − β) p̃ + β softmax(z_b / T), taken as a constant. Neither is the paper's; the defaults
    leave both out.

    Args:
        student_logits: z.
        target: p̃.
        weight: v.
        temperature: T; the target is made with it too (p_i = softmax(z_i / T); a Monte Carlo mean stays as it is).
        selected: ρ, the share of a batch with the smallest divergences that counts, one text at least.
        bootstrap: β, how far the target is the student's own distribution.
    """
    logits = student_logits.float() / temperature
    if bootstrap:
        target = (1 - bootstrap) * target.float() + bootstrap * torch.softmax(logits.detach(), -1)
    each = divergence(target, logits)
    if selected < 1:
        easiest = each.detach().topk(max(1, round(selected * len(each))), largest=False).indices
        each, weight = each[easiest], weight[easiest]
    return {"divergence": (weight.float() * each).mean()}
