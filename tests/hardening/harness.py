"""One command in this process, watched: what it printed, how it ended, and what it must never do."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from plait.cli import invoke

SECONDS = 20.0
"""A command on these tiny models takes a tenth of one."""
LINE = 700
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class HangError(BaseException):
    """The command went on for too long."""


@dataclass
class Outcome:
    """How a command ended; `faults` are those that nobody can excuse."""

    arguments: tuple[str, ...]
    code: int | None
    out: str
    err: str
    faults: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        """Returns the last line on stderr."""
        return self.err.strip().rpartition("\n")[2]


def _late(*_: Any) -> None:
    raise HangError


def refuse_network(asked: list[str]) -> contextlib.ExitStack:
    """Closes sockets: whoever opens one is noted and refused."""

    def closed(*arguments: Any, **_: Any) -> Any:
        asked.append(f"network: {arguments[1:2]}")
        raise OSError("no network in this test")

    stack = contextlib.ExitStack()
    for name in ("connect", "connect_ex"):
        stack.enter_context(mock.patch.object(socket.socket, name, closed))
    stack.enter_context(mock.patch.object(socket, "getaddrinfo", closed))
    return stack


class Answering(io.StringIO):
    """Standard input that says yes to whatever is asked, and notes that something was."""

    def __init__(self, asked: list[str]) -> None:
        super().__init__("y\n" * 100)
        self.asked = asked

    def readline(self, *arguments: Any) -> str:  # type: ignore[override]
        self.asked.append("asked on standard input")
        return super().readline(*arguments)


def run(*arguments: object, seconds: float = SECONDS) -> Outcome:
    """Returns how a command ended, having answered yes to all questions and closed the network."""
    words = tuple(str(argument) for argument in arguments)
    faults: list[str] = []
    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, _late)
    told: Any = Answering(faults)

    def answer(*_: Any) -> str:
        faults.append("asked on standard input")
        return "y"

    code: int | None = None
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with (
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), refuse_network(faults),
            mock.patch.object(sys, "stdin", told), mock.patch.object(builtins, "input", answer),
        ):  # fmt: skip
            code = invoke(list(words))
    except HangError:
        faults.append(f"hang: more than {seconds:g} seconds")
    except SystemExit as end:
        faults.append(f"exits by itself with {end.code}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "plait" in frame.filename]
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        faults.append(
            f"traceback: {type(error).__name__} at {place} ({Path(last.filename).name}:{last.lineno}): "
            f"{str(error)[:200]}"
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    outcome = Outcome(words, code, out.getvalue(), err.getvalue(), faults)
    if not faults:
        outcome.faults += looks(outcome)
    return outcome


def looks(outcome: Outcome) -> Iterator[str]:
    """Yields what is wrong with what a command printed."""
    if CONTROL.search(outcome.out) or CONTROL.search(outcome.err):
        yield "control characters on the terminal"
    if outcome.code == 0 and re.search(r"\bNaN\b|\bnan\b|Infinity", outcome.out):
        yield "NaN at exit 0"
    if outcome.code not in (0, 1, 2):
        yield f"exit {outcome.code}"
    if outcome.code == 2:
        lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        if len(lines) != 1:
            yield f"{len(lines)} error lines"
        elif len(lines[0]) > LINE:
            yield f"an error line of {len(lines[0])} characters"


def copied(folder: Path, place: Path) -> Path:
    """Returns a fresh copy of a file or folder below `place`."""
    target = place / folder.name
    if folder.is_dir():
        shutil.copytree(folder, target, symlinks=True)
    else:
        shutil.copy(folder, target)
    return target


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns size and time of every file below a folder."""
    files = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    facts = {file: file.lstat() for file in files}
    return {str(file.relative_to(folder)): (one.st_size, one.st_mtime_ns) for file, one in facts.items()}
