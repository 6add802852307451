"""Several processes that share one job, as `accelerate launch` and `torchrun` start them.

Each has all of the data and computes a part; sums and parts are exchanged, so that all know the result, and the first
alone writes and prints. Before each exchange processes say whether they have failed: then all end with that error.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from plait.errors import PlaitError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_SHARED: ContextVar[bool] = ContextVar("shared", default=False)


class SaidByFirstError(PlaitError):
    """An error that the first process tells the user about."""


def count() -> int:
    """Returns how many processes share what is done now: 1 outside `one_job`."""
    return int(os.environ.get("WORLD_SIZE", "1")) if _SHARED.get() else 1


def rank() -> int:
    """Returns which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if _SHARED.get() else 0


def speaks() -> bool:
    """Returns whether this process prints: the first of those that were launched together, or one alone."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def one_job() -> Iterator[None]:
    """Lets the processes that were launched together share what is done inside.

    Raises:
        PlaitError: another process has met one.
    """
    if _SHARED.get() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    from accelerate import PartialState

    PartialState()  # joins the others, through gloo on CPUs
    atexit.register(_leave)  # a process that ends with connections open is aborted when a peer closes them first
    token = _SHARED.set(True)
    try:
        yield
        _agree(None)
    except SaidByFirstError:
        raise
    except Exception as error:
        if not getattr(error, "agreed", False):
            _failures(error)
        if rank() and isinstance(error, PlaitError):
            raise SaidByFirstError(str(error)) from None
        raise
    finally:
        _SHARED.reset(token)


def _leave() -> None:
    """Closes the connections to the other processes."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _failures(error: Exception | None) -> list[tuple[str, bool]]:
    """Returns what the processes that have failed say, and whether a user can mend it, once all have come here."""
    import torch.distributed as dist

    told: list[Any] = [None] * count()
    dist.all_gather_object(told, None if error is None else (str(error), isinstance(error, PlaitError)))
    return [one for one in told if one is not None]


def _agree(error: Exception | None) -> None:
    """Raises the error of the first process that failed, when all have come here."""
    if failures := _failures(error):
        message, mendable = failures[0]
        found: Exception = PlaitError(message) if mendable else RuntimeError(f"another process failed: {message}")
        found.agreed = True  # type: ignore[attr-defined]
        raise found


def mine(items: Sequence[T]) -> Sequence[T]:
    """Returns every n-th of some items, beginning with the number of this process."""
    return items[rank() :: count()]


def from_first(value: T) -> T:
    """Returns the value that the first process has."""
    if count() == 1:
        return value
    import torch.distributed as dist

    _agree(None)
    held = [value if rank() == 0 else None]
    dist.broadcast_object_list(held, src=0)
    return held[0]  # type: ignore[return-value]


def everyones(value: T) -> list[T]:
    """Returns the values of all processes, in order."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    _agree(None)
    held: list[Any] = [None] * count()
    dist.all_gather_object(held, value)
    return held


def for_first(value: T) -> list[T]:
    """Returns the values of all processes to the first, and nothing to the others."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    _agree(None)
    held: list[Any] | None = [None] * count() if rank() == 0 else None
    dist.gather_object(value, held, dst=0)
    return held or []


def summed(tensor: Tensor) -> Tensor:
    """Returns the sum of a tensor over all processes, added in float64, in the dtype and place of the tensor."""
    if count() == 1:
        return tensor
    import torch
    import torch.distributed as dist

    _agree(None)
    exact = tensor.detach().to("cpu", torch.float64, copy=True)
    if dist.get_backend() == "nccl":
        exact = exact.to(torch.accelerator.current_accelerator())
    dist.all_reduce(exact)
    return exact.to(tensor.device, tensor.dtype)


def in_order(parts: Sequence[Mapping[int, T]]) -> list[T]:
    """Returns what the processes have found by its number, in order."""
    every = {number: value for part in parts for number, value in part.items()}
    return [every[number] for number in sorted(every)]
