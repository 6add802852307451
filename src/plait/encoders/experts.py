"""Experts of a mixture: files have a matrix for each, models one fused parameter; apart from what reads either."""

from __future__ import annotations

import re

from torch import Tensor

_STORED = re.compile(r"(.*\bexperts)\.(\d+)\.(\w+)\.weight")
_PARTS = {
    "gate_proj": ("gate_up_proj", 0), "w1": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1), "w3": ("gate_up_proj", 1),
    "down_proj": ("down_proj", None), "w2": ("down_proj", None),
}  # fmt: skip
"""The fused parameter that a matrix is part of, and which half of its rows; None for all."""


def fused_name(stored: str) -> str | None:
    """Returns the fused parameter that the matrix of one expert is part of; None for any other name."""
    found = _STORED.fullmatch(stored)
    return None if found is None or found[3] not in _PARTS else f"{found[1]}.{_PARTS[found[3]][0]}"


def expert_part(fused: Tensor, stored: str) -> Tensor:
    """Returns what belongs to the matrix of one expert, [out, in], of a fused tensor [experts, rows, in].

    Axes of length 1, over which a statistic is the same, stay.
    """
    found = _STORED.fullmatch(stored)
    assert found is not None
    mine, half = fused[int(found[2])], _PARTS[found[3]][1]
    return mine if half is None or mine.shape[0] == 1 else mine.chunk(2)[half]
