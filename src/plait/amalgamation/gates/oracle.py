"""Which teachers have the true label: for study, where labels exist."""

from __future__ import annotations

from plait.amalgamation.gate import GATES, Known, PerText, Positions


@GATES.register(
    "oracle",
    paper="arXiv:2210.05230",
    temperature=0.2,
    passes=False,
    keep="none",
    when="For study: the upper bound that true labels give.",
)
def oracle(labels: Positions, known: Known) -> PerText:
    """Returns 1 where the teacher has the text's true label, else 0.

    s = 1[y ∈ L_i]

    An upper bound for every other gate, not a method: it reads the labels. A text of unknown label gets 0 from all.

    Args:
        labels: y, as positions in the union; −1 where unknown.
        known: which labels of the union the teacher has.
    """
    return (known[labels.clamp(min=0)] & (labels >= 0)).double()
