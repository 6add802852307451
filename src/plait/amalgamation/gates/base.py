"""How near a text lies to what a teacher's labels cover, seen by an encoder that was not fine-tuned."""

from __future__ import annotations

from plait.amalgamation.gate import GATES, Features, Logits, Near, PerText
from plait.amalgamation.gates.mahalanobis import relative_distance, scaled
from plait.amalgamation.neighbours import MOST, averaged


@GATES.register(
    "base",
    paper="arXiv:2106.09022",
    temperature=1.0,
    passes=False,
    keep="none",
    limits={"neighbours": (0, MOST), "shrinkage": (0.0, 1.0)},
    when="Teachers of similar texts, told apart by what their neighbours are about.",
)
def base(
    base: Features, near: Near, logits: Logits, *, neighbours: int = 30, shrinkage: float = 0.1
) -> PerText:
    """Returns minus the relative Mahalanobis distance to the nearest label in the base's features, among neighbours.

    s(x) = −min_c (d_c(x) − d_0(x)) / sd,  s̄(x) = (s(x) + Σ_{k ≤ K} s(x_k)) / (K + 1)

    d_c and d_0 as for `mahalanobis`, but of the features of the encoder before any fine-tuning, with the classes of the
    teacher's own predictions; x_k are the nearest texts in that space. Fine-tuning on some topics pulls all others
    together; the encoder that it began from still knows which texts belong together. That helps where the teachers'
    labels differ by topic, and harms where they differ by form, which such an encoder does not see.

    Differs from the paper in the space, in the neighbours, and as `mahalanobis` does.

    Args:
        base: h, of all texts: the mean over the tokens of the base's last hidden state.
        near: x_k, the nearest first.
        logits: z, the teacher's, of all texts.
        neighbours: K; 0 leaves each text alone.
        shrinkage: ρ of the covariances.
    """
    return averaged(scaled(relative_distance(base, logits, shrinkage)), near, neighbours)
