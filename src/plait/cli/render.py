"""What commands print: tables for people, JSON for machines. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from plait.errors import printable
from plait.processes import speaks


def as_json(content: Any) -> None:
    """Prints plain data as JSON; where the output is not in UTF-8, with escapes for what it may lack."""
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(numbers(content), indent=2, ensure_ascii=ascii_only, default=str, allow_nan=False)
    line(text)


def numbers(content: Any) -> Any:
    """Returns plain data with null for what JSON has no number for."""
    if isinstance(content, Mapping):
        return {name: numbers(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [numbers(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def line(text: str) -> None:
    """Prints one line; of processes that work together, the first does."""
    if speaks():
        sys.stdout.write(printable(text) + "\n")


def table(rows: Sequence[Mapping[str, str]], title: str | None = None, right: Sequence[str] = ()) -> None:
    """Prints rows as a table; columns in `right` are aligned there."""
    if not speaks():
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(title=title, title_justify="left")
    for column in rows[0]:
        drawn.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(escape(printable(cell)) for cell in row.values()))
    # Off a terminal the width is unknown: wide enough that no number is folded.
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(drawn)


def facts(content: Mapping[str, Any], indent: int = 0) -> None:
    """Prints nested facts, one a line."""
    for name, value in content.items():
        start = f"{' ' * indent}{name}: "
        if isinstance(value, Mapping) and value:
            line(start.rstrip())
            facts(value, indent + 2)
        elif isinstance(value, list | tuple) and value and all(isinstance(row, Mapping) for row in value):
            line(start.rstrip())
            for row in value:
                line(" " * (indent + 2) + ", ".join(f"{key} {_short(found)}" for key, found in row.items()))
        elif isinstance(value, list | tuple):
            line(start + (", ".join(map(str, value)) or "–"))
        elif value not in (None, {}, ""):
            line(start + str(value))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
