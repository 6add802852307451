"""Numbers as a page says them; apart because tables, cards and charts must say one number alike."""

from __future__ import annotations

import math
from typing import Any

NONE = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Returns a score."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def share(value: float | None, digits: int = 1) -> str:
    """Returns a share in per cent."""
    return NONE if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def between(low: float | None, high: float | None, *, shares: bool = False) -> str:
    """Returns an interval."""
    if low is None or high is None:
        return ""
    return f"{100 * low:.1f} to {100 * high:.1f} %" if shares else f"{low:.3f} to {high:.3f}"


def with_interval(value: float | None, low: float | None, high: float | None, *, shares: bool = False) -> str:
    """Returns a value and its interval behind it."""
    told = share(value) if shares else number(value)
    around = between(low, high, shares=shares)
    return f"{told} ({around})" if around and told != NONE else told


def millions(count: float | None) -> str:
    """Returns a count of parameters."""
    if count is None:
        return NONE
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f}"


def megabytes(size: float | None) -> str:
    """Returns a size on disk or in memory."""
    if size is None:
        return NONE
    return (
        f"{size / 1e9:.2f} GB"
        if size >= 1e9
        else f"{size / 1e6:.1f} MB"
        if size >= 1e5
        else f"{size / 1e3:.1f} kB"
    )


def duration(seconds: float | None) -> str:
    """Returns a time."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plain(value: Any) -> str:
    """Returns anything from a file as words; nothing where there is none."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or NONE
    return str(value)
