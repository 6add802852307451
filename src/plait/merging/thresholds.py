"""Exact thresholds for trimming: the k-th greatest magnitude."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kept(density: float, size: int) -> int:
    """Returns k, how many of `size` entries survive: ⌈density · size⌉, guarded against rounding of the product."""
    return min(size, math.ceil(density * size - 1e-9 * size))


def kth_magnitudes(changes: Tensor, density: float) -> Tensor:
    """Returns per source the k-th greatest magnitude of its changes; infinite where nothing is kept."""
    flat = changes.flatten(1).abs()
    k = kept(density, flat.shape[1])
    if k == 0:
        return torch.full((flat.shape[0],), math.inf)
    return flat.kthvalue(flat.shape[1] - k + 1, dim=1).values
