"""Putting teachers on one scale without labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plait.amalgamation.gate import Logits, Probabilities
from plait.amalgamation.routing import Scores

COLDEST, HOTTEST = 0.01, 100.0
_HALVINGS = 60


def temperature_from_passes(logits: Logits, mean: Probabilities) -> float:
    """Returns the temperature at which one pass is nearest to the Monte Carlo mean.

    T = argmin_T mean_x KL(p̄ ‖ softmax(z / T)),  0.01 ≤ T ≤ 100

    In β = 1/T this is convex: its slope Σ_c (softmax(βz)_c − p̄_c) z_c, averaged over the texts, only grows, and is
    halved down to 0. Logits that do not tell labels apart leave T = 1.

    Args:
        logits: z, of one deterministic pass.
        mean: p̄.
    """
    scores, goal = logits.double(), mean.double()
    scores = scores - scores.mean(-1, keepdim=True)
    if not len(scores) or not bool((scores != 0).any()):
        return 1.0
    wanted = (goal * scores).sum(-1).mean()
    low, high = -math.log(HOTTEST), -math.log(COLDEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = (torch.softmax(math.exp(middle) * scores, -1) * scores).sum(-1).mean()
        low, high = (low, middle) if reached > wanted else (middle, high)
    return math.exp(-(low + high) / 2)


def standardize(scores: Scores) -> Scores:
    """Returns scores with mean 0 and standard deviation 1 for each teacher: (s − mean) / sd.

    Takes away that one teacher is surer than another on every text. It supposes that the teachers know about equally
    much of the corpus: one that knows most of it loses texts to the others.

    Args:
        scores: one column per teacher; a constant column becomes 0.
    """
    centred = scores.double() - scores.double().mean(0)
    spread = centred.square().mean(0).sqrt()
    noise = 1e-12 * scores.double().abs().amax(0).clamp(min=1e-300)
    result: Tensor = torch.where(spread > noise, centred / spread.clamp(min=1e-300), 0.0)
    return result
