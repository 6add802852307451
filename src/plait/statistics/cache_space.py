"""How much room kept statistics take, and making some; apart from the cache itself, which needs torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.boundary import byte_count
from plait.errors import OutputError, RecipeError
from plait.hub import cache_home

LIMIT = "PLAIT_CACHE_LIMIT"
"""The environment variable that holds the size kept statistics may have; none by default."""


def cache_folder() -> Path:
    """Returns where statistics are kept for reuse: `PLAIT_CACHE`, else plait/ in the user's cache folder."""
    return cache_home() / "statistics"


@dataclass(frozen=True)
class Kept:
    """One file of statistics."""

    file: Path
    size: int
    used: float


def kept() -> list[Kept]:
    """Returns the files in the cache, the longest unused first."""
    found = []
    for file in cache_folder().glob("*.safetensors"):
        try:
            about = file.stat()
        except OSError:  # another run has removed it
            continue
        found.append(Kept(file, about.st_size, about.st_mtime))
    return sorted(found, key=lambda one: one.used)


def bytes_of(size: str | int) -> int:
    """Returns a size such as `500MB` or `2GB` in bytes.

    Raises:
        RecipeError: something else.
    """
    count = byte_count(size)
    if count is None:
        raise RecipeError(f"size {size!r}: expected a number with a unit, such as 500MB or 2GB")
    return count


def trim(limit: str | int) -> list[Kept]:
    """Returns what was removed so that the rest has at most this size: the longest unused first.

    Raises:
        RecipeError: no size.
        OutputError: a file cannot be removed.
    """
    room = bytes_of(limit)
    files, removed = kept(), []
    total = sum(one.size for one in files)
    for one in files:
        if total <= room:
            break
        try:
            one.file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{one.file}: cannot be removed: {error.strerror}") from error
        total -= one.size
        removed.append(one)
    return removed


def size_limit() -> int | None:
    """Returns the size in bytes that `PLAIT_CACHE_LIMIT` allows, or None where it is not set.

    Raises:
        RecipeError: no size. Asked for before any work, so that a typing error does not stop it halfway.
    """
    limit = os.environ.get(LIMIT)
    if not limit:
        return None
    try:
        return bytes_of(limit)
    except RecipeError as error:
        raise RecipeError(f"environment variable {LIMIT}: {error}") from None


def keep_within_limit() -> None:
    """Trims the cache to the size that `PLAIT_CACHE_LIMIT` allows, where it is set."""
    if (limit := size_limit()) is not None:
        trim(limit)


def describe(removed: list[Kept] | None = None) -> dict[str, Any]:
    """Returns the cache as plain data."""
    files = kept()
    gone = {} if removed is None else {
        "removed": len(removed), "megabytes_removed": round(sum(one.size for one in removed) / 1e6, 2)
    }  # fmt: skip
    return {
        "folder": str(cache_folder()),
        "files": len(files),
        "megabytes": round(sum(one.size for one in files) / 1e6, 2),
        "limit": os.environ.get(LIMIT),
        **gone,
    }
