"""Progress with time left for anything over two seconds; silent under `quiet`, off a terminal one line at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
Tick = Callable[[int], None]

logger = logging.getLogger("plait")
DELAY = 2.0


def nothing(_: int = 1) -> None:
    """Ignores a tick."""


@contextmanager
def task(what: str, total: int | None = None) -> Iterator[Tick]:
    """Yields a tick function; a bar with time left appears on stderr once two seconds have passed.

    The bar shows when the `plait` logger is enabled for INFO (which `--quiet` turns off) and stderr is a terminal;
    elsewhere one line is logged at the end, when the work took over two seconds.
    """
    if not logger.isEnabledFor(logging.INFO):
        yield nothing
        return
    from rich.console import Console

    start = time.monotonic()
    console = Console(stderr=True)
    if console.is_terminal:
        with _late_bar(console, what, total) as tick:
            yield tick
    else:
        yield nothing
    if (elapsed := time.monotonic() - start) > DELAY:
        logger.info("%s: done in %.1f s", what, elapsed)


@contextmanager
def _late_bar(console: Console, what: str, total: int | None) -> Iterator[Tick]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    handle = bar.add_task(what, total=total)
    start = time.monotonic()
    shown = False

    def tick(amount: int = 1) -> None:
        nonlocal shown
        bar.advance(handle, amount)
        if not shown and time.monotonic() - start > DELAY:
            bar.start()
            shown = True

    try:
        yield tick
    finally:
        if shown:
            bar.stop()


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items while reporting progress on them."""
    length = total if total is not None else (len(items) if hasattr(items, "__len__") else None)  # type: ignore[arg-type]
    with task(what, length) as tick:
        for item in items:
            yield item
            tick(1)
