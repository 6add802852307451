"""The conflict map once more: float64, one entry at a time, straight from the definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Array = Any


def changes(sources: Sequence[Array], base: Array | None) -> list[list[float]]:
    """Returns each source's task vector, flat."""
    flat = [[float(x) for x in source.reshape(-1)] for source in sources]
    if base is None:
        origin = [math.fsum(entries) / len(flat) for entries in zip(*flat, strict=True)]
    else:
        origin = [float(x) for x in base.reshape(-1)]
    return [[x - o for x, o in zip(one, origin, strict=True)] for one in flat]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def sign_agreement(a: Sequence[float], b: Sequence[float]) -> float:
    both = [(x, y) for x, y in zip(a, b, strict=True) if x != 0 and y != 0]
    return sum((x > 0) == (y > 0) for x, y in both) / len(both)
