"""How a command may end before its time: signals that stop it, and streams that take nothing or not everything."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What asks a command to end: a scheduler, a container that is stopped, a terminal that is closed."""


class Stopped(BaseException):
    """A signal has asked the command to end: no error of the work, and nobody on the way out is to handle it."""

    def __init__(self, number: int) -> None:
        """Keeps the number of the signal."""
        super().__init__(number)
        self.code = 128 + number
        """The exit code that shells expect."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns signals that would end the process at once into `Stopped`, so that temporary folders are removed.

    A second one is ignored while that is done. Signals that are handled or ignored already (`nohup`) stay so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        for one in ours:
            signal.signal(one, signal.SIG_IGN)
        raise Stopped(number)

    ours = [one for one in STOPS if signal.getsignal(one) is signal.SIG_DFL]
    for one in ours:
        signal.signal(one, stop)
    try:
        yield
    finally:
        for one in ours:
            signal.signal(one, signal.SIG_DFL)


def open_streams() -> None:
    """Lets standard output and error take any text, whatever their encoding, and be closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Its number would go to the next file that is opened, and what libraries print into that file.
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for good
        else:
            with suppress(AttributeError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Sends what is still to be printed nowhere: its reader has gone, or its disk is full."""
    with suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
