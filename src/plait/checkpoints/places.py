"""Where an output may lie: apart from all that is read to make it. One rule for every command that writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from plait.errors import OutputError


def check_apart(output: str | Path, *read: Any, kept: bool = False) -> None:
    """Raises `OutputError` where an output is, holds or lies inside what is read to make it.

    Args:
        output: The file or folder to be written.
        read: Paths, Hub ids, mappings or objects with a `path`, anything in memory, None: what is no path of
            something on disk is passed over. Links are followed; `@split` and `@revision` do not count.
        kept: Whether `read` are places that the command writes as well, so that they need not exist yet.

    Raises:
        OutputError: They overlap.
    """
    target = _real(output)
    for given in read:
        for place in _places(given, kept=kept):
            if how := _overlap(target, place):
                which = "kept" if kept else "read"
                raise OutputError(
                    f"output {output} and {_path(given)}, which is {which}, overlap ({how}): choose another output"
                )


def _overlap(target: Path, place: Path) -> str | None:
    if target == place:
        return "they are the same"
    if target in place.parents:
        return "the output holds it"
    if place in target.parents and not place.is_file():
        return "the output lies inside it"
    return None


def _path(given: Any) -> str | None:
    found = given.get("path") if isinstance(given, Mapping) else getattr(given, "path", given)
    return str(found) if isinstance(found, str | Path) else None


def _places(given: Any, *, kept: bool) -> list[Path]:
    name, found = _path(given), []
    for spelled in dict.fromkeys((name, name.rpartition("@")[0])) if name else ():
        # A text too long to be a name is none.
        with suppress(OSError, ValueError):
            if spelled and (kept or Path(spelled).expanduser().exists()):
                found.append(_real(spelled))
    return found


def _real(place: str | Path) -> Path:
    return Path(os.path.realpath(Path(place).expanduser()))
