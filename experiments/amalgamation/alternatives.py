"""Other ways of weighing the same gates without labels, which `auto` was chosen among: [n, t, g] scores to routing.

Apart from `routing.py`, which judges them, because each is a formula of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plait.amalgamation.routing import standardize

STEPS = 50
Weighing = Callable[[Tensor], Tensor]


def standard(panel: Tensor) -> Tensor:
    return torch.stack([standardize(panel[..., g]) for g in range(panel.shape[-1])], -1)


def plain_sum(panel: Tensor) -> Tensor:
    """Returns the sum of the standardised scores: supposes that all teachers know equally much."""
    return standard(panel).sum(-1)


def prior_by_em(panel: Tensor) -> Tensor:
    """Returns the sum with the teachers' shares found by expectation maximisation (Saerens and others, 2002)."""
    scores = plain_sum(panel)
    prior = torch.full((scores.shape[1],), 1 / scores.shape[1], dtype=scores.dtype)
    for _ in range(200):
        prior = torch.softmax(scores + prior.log(), -1).mean(0)
    return scores + prior.log()


def mixture(panel: Tensor) -> Tensor:
    """Returns the log-odds of a mixture of one Gaussian a teacher with a common covariance over all scores."""
    scores = standard(panel)
    points = (scores - scores.mean(1, keepdim=True)).flatten(1)
    shares = torch.softmax(scores.sum(-1), -1)
    logits = scores.sum(-1)
    for _ in range(STEPS):
        centres = (shares.T @ points) / shares.sum(0)[:, None].clamp(min=1e-6)
        gaps = points[:, None] - centres
        spread = torch.einsum("nt,ntd,nte->de", shares, gaps, gaps) / len(points)
        spread = 0.9 * spread + 0.1 * spread.diagonal().mean() * torch.eye(len(spread), dtype=spread.dtype)
        logits = -0.5 * torch.einsum("ntd,de,nte->nt", gaps, torch.linalg.inv(spread), gaps)
        shares = torch.softmax(logits + shares.mean(0).log(), -1)
    return logits + shares.mean(0).log()


def two_groups(*, temper: float = 0.0, hard: bool = False, shares_count: bool = False) -> Weighing:
    """Returns `auto` with a weaker product, hard assignments, or the shares inside the responsibilities."""

    def weigh(panel: Tensor) -> Tensor:
        scores = standard(panel)
        shares = torch.softmax(scores.sum(-1), -1)
        logits = scores.sum(-1)
        for _ in range(STEPS):
            given = torch.nn.functional.one_hot(shares.argmax(-1), shares.shape[1]).double() if hard else shares
            inside, outside = given[..., None], 1 - given[..., None]
            own = (inside * scores).sum(0) / inside.sum(0).clamp(min=1e-9)
            other = (outside * scores).sum(0) / outside.sum(0).clamp(min=1e-9)
            spread = (inside * (scores - own).square() + outside * (scores - other).square()).mean(0)
            weights = ((own - other) / spread.clamp(min=1e-6)).mean(0)
            logits = ((scores - (own + other) / 2) * weights).sum(-1) / panel.shape[-1] ** temper
            logits = logits + given.mean(0).clamp(min=1e-6).log() if shares_count else logits
            shares = torch.softmax(logits, -1)
        return logits

    return weigh


def votes(panel: Tensor) -> Tensor:
    """Returns Dawid and Skene's log-odds of the gates' hard choices by standardised scores."""
    scores = standard(panel)
    teachers, chosen = panel.shape[1], scores.argmax(1)
    said = torch.nn.functional.one_hot(chosen, teachers).double()  # [n, g, t]
    shares = said.mean(1)
    logits = shares
    for _ in range(STEPS):
        confusion = torch.einsum("ni,ngv->giv", shares, said) + 1
        confusion = confusion / confusion.sum(-1, keepdim=True)
        logits = (shares.mean(0) + 1e-6).log() + torch.einsum("ngv,giv->ni", said, confusion.log())
        shares = torch.softmax(logits, -1)
    return logits + 1e-3 * scores.sum(-1)


ALTERNATIVES: dict[str, Weighing] = {
    "sum": plain_sum,
    "prior by EM": prior_by_em,
    "mixture": mixture,
    "votes": votes,
    "two groups": two_groups(),
    "two groups, hard": two_groups(hard=True),
    "two groups, shares count": two_groups(shares_count=True),
    "two groups, root of G": two_groups(temper=0.5),
    "two groups, G": two_groups(temper=1.0),
}
