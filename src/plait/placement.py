"""Where a model runs: on the accelerator where there is one, as with the Trainer. `CUDA_VISIBLE_DEVICES=` hides it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

CPU = torch.device("cpu")


def accelerator() -> torch.device:
    """Returns the accelerator that can be used now, or the CPU."""
    # Without the check, torch names what it was built for, be there one or not.
    return torch.accelerator.current_accelerator(check_available=True) or CPU


@contextmanager
def accelerated(model: nn.Module) -> Iterator[torch.device]:
    """Yields where a model runs inside: a model on the CPU goes to the accelerator, and comes back at the end.

    One in double precision stays, for not every accelerator has that.
    """
    first = next(model.parameters())
    device = accelerator()
    if first.device != CPU or device == CPU or first.dtype == torch.float64:
        yield first.device
        return
    model.to(device)
    try:
        yield device
    finally:
        model.to(CPU)
