"""Random numbers that depend on where they are used, not on when: by seed, source, parameter and place."""

from __future__ import annotations

import numpy as np
import torch
import xxhash
from torch import Tensor

BLOCK = 8
"""float32 numbers in one Philox block of four 64-bit words."""


def uniform(seed: int, source: str, parameter: str, start: int, count: int) -> Tensor:
    """Returns the numbers in [0, 1) of entries `start` to `start + count` of a flat parameter.

    Philox is counter-based: any piece can be drawn by itself and equals that piece of the whole.
    """
    key = xxhash.xxh3_128_intdigest(f"{seed}\0{source}\0{parameter}".encode())
    skip = start % BLOCK
    stream = np.random.Generator(np.random.Philox(key=key, counter=start // BLOCK))
    return torch.from_numpy(stream.random(skip + count, dtype=np.float32)[skip:])
