"""A run that is stopped in the middle, as by Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def stopped_at(room: Any, function: str, call: int) -> Iterator[None]:
    """Interrupts what runs inside when it calls a function of a module for the n-th time; the block must end so."""
    real, calls = getattr(room, function), 0

    def stopping(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, function, stopping)
        with pytest.raises(KeyboardInterrupt):
            yield
