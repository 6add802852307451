"""What is kept of the Monte Carlo passes of one text: their mean, their entropy, and how sure the score is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from plait.statistics.posteriors.shapes import (
    Distributions,
    Passes,
    PerDistribution,
    PerPass,
    PerText,
    Probabilities,
)


@dataclass(frozen=True)
class Summary:
    """Of n texts: `mean` [n, C], `expected_entropy` [n], `spread` [n]."""

    mean: Probabilities
    expected_entropy: PerText
    spread: PerText


def entropy(probabilities: Distributions) -> PerDistribution:
    """Returns H(p) = −Σ_c p_c log p_c over the last axis in nats, with 0 log 0 = 0."""
    found: PerDistribution = torch.special.entr(probabilities).sum(-1)
    return found


def summarize(passes: Passes) -> Summary:
    """Returns the summary of k passes' probabilities p_k per text.

    p̄ = (1/k) Σ_k p_k,  expected entropy = (1/k) Σ_k H(p_k)
    spread = sd_k(Σ_c p_kc log p̄_c) / (log C · √k): by the delta method the standard error of 1 − H(p̄) / log C

    One pass tells nothing of the spread: it is ∞. Where every pass agrees it is 0.
    """
    count = passes.shape[-2]
    mean = passes.mean(-2)
    spread = slopes(passes, mean).var(-1, correction=1).sqrt() / math.sqrt(count) if count > 1 else None
    return Summary(
        mean,
        entropy(passes).mean(-1),
        torch.full(mean.shape[:-1], math.inf, device=mean.device) if spread is None else spread,
    )


def slopes(passes: Passes, mean: Probabilities) -> PerPass:
    """Returns Σ_c p_kc log p̄_c / log C: what each pass adds to the score 1 − H(p̄) / log C, to first order."""
    # A class that no pass gives anything to adds nothing, whatever its logarithm.
    logs = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
    return (passes * logs.unsqueeze(-2)).sum(-1) / math.log(passes.shape[-1])
