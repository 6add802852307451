"""How sure a teacher is in one pass."""

from __future__ import annotations

import torch

from plait.amalgamation.gate import GATES, Logits, PerText, certainty


@GATES.register(
    "entropy",
    paper="arXiv:2112.07327",
    temperature=0.2,
    passes=False,
    keep="none",
    when="Quick first look: one pass, and teachers that are equally sure of themselves.",
)
def entropy(logits: Logits) -> PerText:
    """Returns 1 minus the normalised entropy of one deterministic pass.

    p = softmax(z),  s = 1 + Σ_c p_c log p_c / log C

    What `muka` is without Monte Carlo dropout.

    Args:
        logits: z.
    """
    logs = torch.log_softmax(logits.double(), -1)
    return certainty(-(logs.exp() * logs).sum(-1), logits.shape[-1])
