"""How loud a teacher's loudest label is."""

from __future__ import annotations

from plait.amalgamation.gate import GATES, Logits, PerText


@GATES.register(
    "max_logit",
    paper="arXiv:1911.11132",
    temperature=1.0,
    passes=False,
    keep="none",
    when="For comparison with energy.",
)
def max_logit(logits: Logits) -> PerText:
    """Returns the greatest logit.

    s = max_c z_c

    Args:
        logits: z.
    """
    return logits.double().amax(-1)
