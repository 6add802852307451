"""Answers that take long to import and never to compute, kept on disk until what they were read off changes.

What `plait methods`, `plait schema` and `plait inspect` say is plain data, read off signatures or headers; nearly all
of their time is the import of torch and transformers. Apart from what makes the answers: it must not import that.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points, version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import xxhash

from plait.statistics.cache_space import cache_folder

logger = logging.getLogger("plait")
KEPT = 32
"""Answers that are kept; the longest unused go first."""
MOST_FILES = 2000
"""Files and folders below a folder beyond which looking at each takes longer than it saves."""


def answer(name: str, make: Callable[[], dict[str, Any]], *, about: Path | None = None) -> dict[str, Any]:
    """Returns what `make` returns, in JSON's types: that of an earlier time where nothing has changed since.

    Where torch is there already, `make` is asked: there is no time to save, and methods may have been registered by
    hand. An answer that came with a warning is not kept, since the warning belongs to it.

    Args:
        name: what is asked.
        make: makes the answer.
        about: the file or folder that the answer describes; it counts by names, sizes and times.
    """
    place = None if "torch" in sys.modules else place_of(name, about)
    if place is not None and (known := read_answer(place)) is not None:
        return known
    with _Warnings() as warnings:
        found: dict[str, Any] = json.loads(json.dumps(make()))
    if place is not None and not warnings.heard:
        write_answer(place, found)
    return found


def place_of(name: str, about: Path | None) -> Path | None:
    """Returns the file that holds an answer; None where it cannot be told whether it still holds."""
    digest = xxhash.xxh3_128(f"{name} {sys.version} {version('transformers')} {version('torch')}".encode())
    for part in code():
        digest.update(part)
    try:
        places = [] if about is None else [about, *sorted(islice(about.rglob("*"), MOST_FILES))]
        for place in places:
            facts = place.stat()
            digest.update(f"{place.absolute()} {facts.st_size} {facts.st_mtime_ns} {facts.st_ino}\n".encode())
    except OSError:
        return None
    if len(places) > MOST_FILES:
        return None
    return answers_folder() / f"{name}-{digest.hexdigest()}.json"


def answers_folder() -> Path:
    """Returns where answers are kept: beside the statistics."""
    return cache_folder().parent / "answers"


def code() -> Iterator[bytes]:
    """Yields what decides which methods there are: our own files, and those of packages that add methods."""
    yield from _sources(Path(__file__).parents[1])
    groups = sorted(group for group in entry_points().groups if group.startswith("plait."))
    for plugin in chain.from_iterable(sorted(entry_points(group=group)) for group in groups):
        yield f"{plugin.group} {plugin.name} {plugin.value}".encode()
        yield from _sources(*_places(plugin))


def _places(plugin: EntryPoint) -> list[Path]:
    """Returns the file or the folders of a plug-in's package, which is not imported."""
    spec = importlib.util.find_spec(plugin.module.partition(".")[0])
    folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    return folders or ([Path(spec.origin)] if spec is not None and spec.origin else [])


def _sources(*places: Path) -> Iterator[bytes]:
    for place in places:
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            yield str(file).encode()
            yield file.read_bytes()


def read_answer(place: Path) -> dict[str, Any] | None:
    """Returns a kept answer; None where there is none, or a damaged one."""
    try:
        found = json.loads(place.read_bytes())
        os.utime(place)
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_answer(place: Path, found: dict[str, Any]) -> None:
    """Keeps an answer; where that is not possible, the next time takes as long as this one."""
    partial = place.with_suffix(f".{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(place)
        for file in sorted(place.parent.iterdir(), key=lambda f: -f.stat().st_mtime)[KEPT:]:
            file.unlink(missing_ok=True)
    except OSError:
        return


class _Warnings(logging.Handler):
    """Says whether there was a warning; where warnings are not logged, there might have been."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard = not logger.isEnabledFor(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - one is enough, whatever it says
        self.heard = True

    def __enter__(self) -> _Warnings:
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger.removeHandler(self)
