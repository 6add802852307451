"""How near a text lies to what a teacher knows, seen by all its layers."""

from __future__ import annotations

import torch

from plait.amalgamation.gate import GATES, Layers, Logits, PerText
from plait.amalgamation.gates.mahalanobis import relative_distance, scaled
from plait.amalgamation.neighbours import MOST, averaged, nearest


@GATES.register(
    "strata",
    paper="arXiv:2406.15476",
    temperature=1.0,
    passes=False,
    keep="layers",
    limits={"shrinkage": (0.0, 1.0), "lowest": (0, 1000), "neighbours": (0, MOST)},
    when="Teachers whose last layer says little about what they know.",
)
def strata(
    layers: Layers, logits: Logits, *, shrinkage: float = 0.1, lowest: int = 1, neighbours: int = 0
) -> PerText:
    """Returns minus the relative Mahalanobis distance to the nearest label, averaged over the teacher's layers.

    s(x) = mean_{l ≥ l_0} −min_c (d_c(h_l(x)) − d_0(h_l(x))) / sd_l

    d_c and d_0 as for `mahalanobis`, of the mean over the tokens of each layer's states. Lower layers have forgotten
    less of what the teacher was not trained on. The store keeps one vector a layer for it, two bytes a number.

    Differs from the paper in averaging, where it also chooses which part of the student each teacher teaches; and as
    `mahalanobis` does.

    Args:
        layers: h, of all texts, the embeddings first.
        logits: z, of all texts.
        shrinkage: ρ of the covariances.
        lowest: l_0, the first layer that counts, 0 the embeddings; the last layer counts in any case.
        neighbours: over how many texts nearest in the teacher's own last layer the score is averaged besides.
    """
    first = min(int(lowest), layers.shape[1] - 1)
    each = [scaled(relative_distance(layers[:, at], logits, shrinkage)) for at in range(first, layers.shape[1])]
    scores = torch.stack(each).mean(0)
    return averaged(scores, nearest(layers[:, -1], int(neighbours)), neighbours) if neighbours else scores
