"""How sure a teacher is when its dropout is on."""

from __future__ import annotations

from plait.amalgamation.gate import GATES, PerText, Probabilities, certainty, entropy_of


@GATES.register(
    "muka",
    paper="arXiv:2112.07327",
    temperature=0.2,
    passes=True,
    keep="none",
    when="To reproduce the paper; needs Monte Carlo passes.",
)
def muka(mean: Probabilities) -> PerText:
    """Returns 1 minus the normalised entropy of the Monte Carlo mean.

    p̄ = (1/K) Σ_k softmax(f(x; mask k)),  s = 1 + Σ_c p̄_c log p̄_c / log C

    Dividing by log C puts teachers with different numbers of labels on one scale from 0 to 1, but does not make them
    equal: with two labels a random guess is surer than with eight.

    Differs from the authors' program in the dropout, which that never turns on: its K passes are one pass.

    Args:
        mean: p̄.
    """
    return certainty(entropy_of(mean), mean.shape[-1])
