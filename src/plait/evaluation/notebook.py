"""Results as notebooks and consoles show them: a line of text, or a small table in HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def html(title: str, facts: Mapping[str, Any], rows: Sequence[Mapping[str, str]] = ()) -> str:
    """Returns a title, facts and a table as HTML, everything escaped.

    Args:
        title: what it is.
        facts: shown in one line; those that are empty are left out.
        rows: of the table, all with the keys of the first.
    """
    shown = {name: str(value) for name, value in facts.items() if value not in (None, "")}
    told = " · ".join(f"{escape(name)}: {escape(value)}" for name, value in shown.items())
    parts = [f"<div><strong>{escape(title)}</strong><br>{told}"]
    if rows:
        head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(str(row.get(name, '')))}</td>" for name in rows[0]) + "</tr>"
            for row in rows
        )
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    return "".join(parts) + "</div>"


def shortened(names: Sequence[str], limit: int = 6) -> str:
    """Returns names in one line, saying how many were left out above the limit."""
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
