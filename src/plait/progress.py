"""Progress with time left for anything over two seconds, and where notes go.

On a terminal it is a bar. Elsewhere (a log file, a notebook) it is one line at the end and, during long work, a line
now and then. Both are notes: they appear where the logger `plait` is enabled for INFO.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import ParamSpec, TypeVar

from plait.errors import printable

T = TypeVar("T")
P = ParamSpec("P")
Tick = Callable[[int], None]

logger = logging.getLogger("plait")
DELAY = 2.0
FIRST, LONGEST = 30.0, 600.0
"""Seconds until the first line off a terminal; each pause is twice the one before, up to the longest."""
LEVELS = {"quiet": logging.ERROR, "warnings": logging.WARNING, "notes": logging.INFO, "debug": logging.DEBUG}


class Printable(logging.Formatter):
    """Spells out what a terminal would obey: names and labels in messages come from files."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the message."""
        return printable(super().format(record))


class Notes(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes our log to whatever stderr is at the time: a notebook replaces it for each cell."""

    def __init__(self) -> None:
        """Writes messages alone, without level or time."""
        super().__init__(sys.stderr)
        self.setFormatter(Printable("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message, above the bars that there are."""
        self.stream = sys.stderr
        bars = sys.modules.get("tqdm") if sys.stderr.isatty() else None
        with bars.tqdm.external_write_mode(file=sys.stderr) if bars else nullcontext():
            super().emit(record)


def set_verbosity(level: str | int) -> None:
    """Chooses what Plait's functions write to stderr, whatever else is configured.

    Args:
        level: `quiet` (errors alone), `warnings`, `notes` (progress and notes too) or `debug`; or a level of `logging`.

    Raises:
        RecipeError: an unknown level.
    """
    from plait.errors import RecipeError, did_you_mean

    if isinstance(level, str) and level not in LEVELS:
        raise RecipeError(f"unknown verbosity {level!r}{did_you_mean(level, LEVELS)}")
    send_to(Notes(), LEVELS[level] if isinstance(level, str) else level)


def send_to(handler: logging.Handler, level: int) -> None:
    """Sends our log to one handler and nowhere else."""
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level)


def default_notes() -> None:
    """Shows notes to those who have configured no logging; leaves everything to those who have.

    A program that configures the root logger, or ours, has said where messages go, so our handler steps back.
    """
    ours = [handler for handler in logger.handlers if isinstance(handler, Notes)]
    if logging.getLogger().handlers:
        if ours and logger.propagate:  # put there by an earlier call of this function
            logger.removeHandler(ours[0])
            logger.setLevel(logging.NOTSET)
        return
    if not logger.handlers and logger.level == logging.NOTSET:
        logger.addHandler(Notes())
        logger.setLevel(logging.INFO)


def noted(function: Callable[P, T]) -> Callable[P, T]:
    """Returns a function of the API that shows progress and notes unless logging has been configured."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        default_notes()
        return function(*args, **kwargs)

    return call


def nothing(_: int = 1) -> None:
    """Ignores a tick."""


@contextmanager
def task(what: str, total: int | None = None) -> Iterator[Tick]:
    """Yields a tick function; a bar with time left appears on stderr once two seconds have passed.

    The bar shows when the `plait` logger is enabled for INFO (which `--quiet` turns off) and stderr is a terminal;
    elsewhere a line is logged now and then, and one at the end when the work took over two seconds.
    """
    if not logger.isEnabledFor(logging.INFO):
        yield nothing
        return
    start = time.monotonic()
    if sys.stderr.isatty():
        from tqdm import tqdm

        looks = {"desc": printable(what), "leave": False, "dynamic_ncols": True}
        with tqdm(total=total, delay=DELAY, file=sys.stderr, **looks) as bar:
            yield bar.update
    else:
        yield _lines(what, total)
    if (elapsed := time.monotonic() - start) > DELAY:
        logger.info("%s: done in %.1f s", what, elapsed)


def _lines(what: str, total: int | None) -> Tick:
    """Returns a tick function that logs how far the work is after 30 seconds, and then less and less often."""
    start = time.monotonic()
    pause, due, done = FIRST, start + FIRST, 0

    def tick(amount: int = 1) -> None:
        nonlocal pause, due, done
        done += amount
        now = time.monotonic()
        if now < due:
            return
        if total and 0 < done < total:
            left = (now - start) * (total - done) / done
            logger.info("%s: %d of %d, %s left", what, done, total, spoken(left))
        elif not total:
            logger.info("%s: %d done after %s", what, done, spoken(now - start))
        pause = min(2 * pause, LONGEST)
        due = now + pause

    return tick


def spoken(seconds: float) -> str:
    """Returns a duration as one would say it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items while reporting progress on them."""
    length = total if total is not None else (len(items) if hasattr(items, "__len__") else None)  # type: ignore[arg-type]
    with task(what, length) as tick:
        for item in items:
            yield item
            tick(1)
