"""Which examples teach and which are held back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def held_back(count: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the rows to train on and those held back to judge on, in order; none are held back for a share of 0."""
    held = 0 if share == 0 or count < 2 else min(max(1, round(share * count)), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])
