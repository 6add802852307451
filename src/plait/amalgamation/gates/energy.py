"""How much a teacher has to say at all."""

from __future__ import annotations

import torch

from plait.amalgamation.gate import GATES, Logits, PerText


@GATES.register(
    "energy",
    paper="arXiv:2010.03759",
    temperature=1.0,
    passes=False,
    keep="none",
    when="Quick first look: one pass, no features.",
)
def energy(logits: Logits) -> PerText:
    """Returns the negative free energy of the logits.

    s = log Σ_c exp z_c

    With a soft choice at temperature 1 the target is the softmax of all teachers' logits side by side:
    softmax(concat z) = Σ_i α_i pad(softmax z_i) with α = softmax(s). Unlike an entropy it sees a constant added to the
    logits, which training leaves undetermined; for classifiers fine-tuned alike this matters little.

    Args:
        logits: z.
    """
    return torch.logsumexp(logits.double(), -1)
