"""Several processes that train together, as `torchrun` starts them: one of them writes."""

from __future__ import annotations

import os

import torch


def processes() -> int:
    """Returns how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Says whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def together() -> None:
    """Returns when all processes have come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
