"""Which texts are alike, by the features of an encoder, and what scores say among them."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.amalgamation.gate import Features, Near, PerText
from plait.errors import DataError

MOST = 100
"""Neighbours that are found of a text, and that a gate can ask for."""
REFERENCES = 20_000
"""Texts among which neighbours are looked for; with more, the work would grow with the square of the corpus."""
_ROWS = 2048  # texts compared with all references at a time


def nearest(features: Features, count: int = MOST) -> Near:
    """Returns the texts nearest to each text, without itself, the nearest first: [n, min(count, n − 1)].

    sim(x, x′) = cos(h − h̄, h′ − h̄),  h̄ the mean over the texts

    Centring takes away the direction that all states of an encoder share. Of more than 20,000 texts every n/20,000-th
    is a possible neighbour.

    Args:
        features: h, of all texts.
        count: neighbours per text.

    Raises:
        DataError: When features are not finite.
    """
    if bad := int((~torch.isfinite(features).all(-1)).sum()):
        raise DataError(f"neighbours: the features of {bad} texts are not finite; name another base with --base")
    points = features.float()
    points = torch.nn.functional.normalize(points - points.mean(0), dim=-1)
    step = -(-len(points) // REFERENCES)
    known = torch.arange(0, len(points), step)
    kept = min(count, len(known) - 1)
    found = [_near(points, known, torch.arange(start, min(start + _ROWS, len(points))), kept)
             for start in range(0, len(points), _ROWS)]  # fmt: skip
    return torch.cat(found)


def _near(points: Tensor, known: Tensor, rows: Tensor, count: int) -> Tensor:
    alike = points[rows] @ points[known].T
    alike[known == rows[:, None]] = -torch.inf
    return known[alike.topk(count, -1).indices]


def averaged(scores: PerText, near: Near, neighbours: int) -> PerText:
    """Returns the mean of a text's score and those of its nearest neighbours.

    s̄(x) = (s(x) + Σ_{k ≤ K} s(x_k)) / (K + 1)

    Args:
        scores: s.
        near: x_k, the nearest first.
        neighbours: K; with fewer texts all there are.
    """
    chosen = near[:, : int(neighbours)]
    total: Tensor = scores + scores[chosen].sum(-1)
    return total / (chosen.shape[1] + 1)
