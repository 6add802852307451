"""What the experiments share: processes that divide a grid of cells among them, and tables of what is finished."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def claimed(place: Path) -> Iterator[bool]:
    """Yields whether this process is the first to work on `place`; the claim of a dead process does not count."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f".{place.name}.claim").open("a") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def waiting(place: Path) -> Iterator[None]:
    """Waits until no other process works on `place`."""
    while True:
        with claimed(place) as mine:
            if mine:
                yield
                return
        time.sleep(2)


def write(file: Path, report: object) -> None:
    """Writes a result, which appears whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.rename(file)


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns the finished results of a folder."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("[!.]*.json"))]


def say(what: str, seconds: float) -> None:
    print(time.strftime("%H:%M:%S"), f"{what} ({seconds:.0f} s)", flush=True)


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a table."""
    return [f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines]]
