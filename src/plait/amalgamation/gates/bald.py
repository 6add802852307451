"""How much the passes of a teacher agree with each other."""

from __future__ import annotations

from plait.amalgamation.gate import GATES, PerText, Probabilities, certainty, entropy_of


@GATES.register(
    "bald",
    paper="arXiv:1112.5745",
    temperature=0.2,
    passes=True,
    keep="none",
    when="For comparison: disagreement between dropout passes alone.",
)
def bald(mean: Probabilities, expected_entropy: PerText) -> PerText:
    """Returns 1 minus the normalised mutual information between the label and the dropout mask.

    I = H(p̄) − (1/K) Σ_k H(p_k),  s = 1 − I / log C

    Counts only what the passes disagree about: a text that every pass finds ambiguous leaves the teacher competent.

    Args:
        mean: p̄, the mean of the passes' probabilities.
        expected_entropy: (1/K) Σ_k H(p_k) in nats.
    """
    return certainty(entropy_of(mean) - expected_entropy.double(), mean.shape[-1])
