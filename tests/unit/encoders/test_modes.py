"""Models as they are trained, and themselves again."""

from __future__ import annotations

import pytest
from torch import nn

from plait.encoders.modes import unwrapped


def by_attribute(model: nn.Module) -> nn.Module:
    """What `unwrapped` did before accelerate's function took its place."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, nn.Module) else model


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, lambda m: nn.DataParallel(m, device_ids=[])])
def test_the_model_itself(wrap: object) -> None:
    model = nn.Linear(2, 2)
    assert unwrapped(wrap(model)) is by_attribute(wrap(model)) is model  # type: ignore[operator]


def test_a_part_that_is_called_module_is_no_wrapper() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    odd = Odd()
    assert unwrapped(odd) is odd
