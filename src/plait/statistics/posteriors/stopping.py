"""When more passes cannot change, or will hardly change, which teacher a text goes to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from plait.statistics.posteriors.settings import Stop
from plait.statistics.posteriors.summary import entropy, slopes

SURE = 4.0
"""Standard errors between the best teacher and another that make a text's routing likely to stay."""


def decided(passes: Sequence[Tensor], total: int, stop: Stop) -> Tensor:
    """Returns for each of n texts whether its hard routing by the muka gate is decided after k of `total` passes.

    Args:
        passes: by teacher the probabilities [n, k, C_i] of the passes so far.
        total: K.
        stop: `certain` or `likely`.
    """
    if len(passes) == 1:
        return torch.ones(len(passes[0]), dtype=torch.bool)
    return _certain(passes, total) if stop == "certain" else _likely(passes, total)


def scores(mean: Tensor) -> Tensor:
    """Returns 1 − H(p̄) / log C."""
    return 1 - entropy(mean) / math.log(mean.shape[-1])


def bounds(mean: Tensor, done: int, total: int) -> tuple[Tensor, Tensor]:
    """Returns the least and the greatest score that the mean of all K passes can have after k of them.

    The final mean is (k p̄ + (K − k) q) / K with any q of the simplex. Entropy is concave: it is least with all of q
    on one class, the likeliest so far, and greatest with q poured like water on the least likely ones.
    """
    fixed = mean.double() * (done / total)
    rest = 1 - done / total
    sharp = fixed.clone()
    sharp.scatter_add_(-1, mean.argmax(-1, keepdim=True), torch.full_like(fixed[..., :1], rest))
    return scores(_poured(fixed, rest)), scores(sharp)


def _poured(fixed: Tensor, rest: float) -> Tensor:
    """Returns max(fixed, level) with the level at which `rest` has been added in all."""
    ascending = fixed.sort(-1).values
    count = torch.arange(1, fixed.shape[-1] + 1, dtype=fixed.dtype)
    levels = (ascending.cumsum(-1) + rest) / count
    # The level over the i smallest holds if it does not reach the next one; the first that holds is right.
    following = torch.cat([ascending[..., 1:], torch.full_like(ascending[..., :1], torch.inf)], -1)
    first = (levels <= following).int().argmax(-1, keepdim=True)
    return torch.maximum(fixed, levels.gather(-1, first))


def _certain(passes: Sequence[Tensor], total: int) -> Tensor:
    pairs = [bounds(p.double().mean(-2), p.shape[-2], total) for p in passes]
    low, high = (torch.stack(side, -1) for side in zip(*pairs, strict=True))
    best = low.argmax(-1, keepdim=True)
    others = high.scatter(-1, best, -torch.inf).amax(-1)
    return low.gather(-1, best).squeeze(-1) > others


def _likely(passes: Sequence[Tensor], total: int) -> Tensor:
    """The standard error of s_i − s_j is √((σ_i² + σ_j²)(1/k − 1/K)): K of them are a population, k a sample."""
    means = [p.double().mean(-2) for p in passes]
    found = torch.stack([scores(mean) for mean in means], -1)
    spread = torch.stack(
        [slopes(p.double(), mean).var(-1) for p, mean in zip(passes, means, strict=True)], -1
    )
    best = found.argmax(-1, keepdim=True)
    gaps = found.gather(-1, best) - found
    remaining = 1 / passes[0].shape[-2] - 1 / total
    errors = ((spread + spread.gather(-1, best)) * remaining).sqrt()
    return (gaps > SURE * errors).scatter(-1, best, torch.ones_like(best, dtype=torch.bool)).all(-1)
