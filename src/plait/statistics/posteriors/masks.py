"""Dropout masks from raw random bits: on a CPU most of what a pass with dropout costs beyond one without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LEVELS = 1 << 16
LOWEST = 1 / 256
"""Below this rate, 16 bits are too coarse."""


class Masks(TorchFunctionMode):
    """Inside, `dropout` takes 16 random bits per entry, four entries from one draw of a 64-bit generator.

    Entries are dropped independently with the rate rounded to a multiple of 2⁻¹⁶ (0.1 becomes 0.100006), and the others
    are divided by one minus that rate: ordinary dropout, at about a quarter of its price. What drops in another way
    than by `torch.nn.functional.dropout` is left alone.
    """

    def __init__(self, seed: int) -> None:
        """Begins with the first mask that follows from `seed`."""
        super().__init__()
        self._bits = np.random.SFC64(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.dropout:
            return self.dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Returns what `torch.nn.functional.dropout` does, of another draw."""
        if not training or p == 0:
            return input
        if inplace or not LOWEST <= p < 1 or input.dtype != torch.float32:
            return F.dropout(input, p, training, inplace)
        level = round(p * LEVELS)
        drawn = self._draw(input.numel()).view(input.shape)
        # Signed numbers, for torch compares no unsigned ones.
        kept = (drawn >= level - LEVELS // 2).to(input.dtype)
        return kept.mul_(LEVELS / (LEVELS - level)).mul_(input)

    def _draw(self, count: int) -> Tensor:
        words = self._bits.random_raw(-(-count // 4))
        return torch.from_numpy(words.view(np.int16))[:count]
