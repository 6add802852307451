"""A comparison in words: its table, the advice, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def by_score(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the candidates, the best first; what was not scored comes last, in the order in which it was tried."""
    every = found["candidates"]
    scored = [row for row in every if row["status"] == "done"]
    rest = [row for row in every if row["status"] != "done"]
    return [*sorted(scored, key=lambda row: -(row["mean_relative"] or float("-inf"))), *rest]


def table(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns a row for each candidate that was scored, in text."""
    tasks = [task["name"] for task in found["tasks"]]
    few = tasks if len(tasks) <= 6 else []
    return [
        {
            "": marks(found, row["id"]) + row["id"],
            "kept": percent(row["mean_relative"]),
            "95 %": "–" if not row["interval"] else " – ".join(f"{100 * end:.1f}" for end in row["interval"]),
            "worst task": "–" if not row["worst"] else f"{row['worst']['task']} {percent(row['worst']['relative'])}",
            **{task: f"{row['scores'][task]['value']:.3f}" for task in few},
            "MB": number(row["bytes"], 1e-6),
            "ms a text": number((row["latency"] or {}).get("1"), 1e3),
            "s to make": number(row["seconds"], 1),
        }
        for row in by_score(found)
        if row["status"] == "done"
    ]


def marks(found: Mapping[str, Any], name: str) -> str:
    """Returns `→` for the recommended choice, `*` for what no other candidate beats in everything."""
    if found["recommended"] and found["recommended"]["id"] == name:
        return "→ "
    return "* " if name in found["pareto"] else "  "


def percent(share: float | None) -> str:
    """Returns a share in per cent."""
    return "–" if share is None else f"{100 * share:.1f} %"


def number(value: float | None, factor: float) -> str:
    """Returns a number in a unit, with as many digits as say something."""
    if value is None:
        return "–"
    scaled = value * factor
    return f"{scaled:.0f}" if scaled >= 100 else f"{scaled:.1f}" if scaled >= 1 else f"{scaled:.2g}"


def advice(found: Mapping[str, Any]) -> list[str]:
    """Returns which choice to take and why, and what was left out or failed, a line each."""
    chosen, said = found["recommended"], []
    if chosen is not None:
        said.append(f"Recommended: {chosen['id']}. {chosen['reason']}")
    for status, word in (("failed", "failed"), ("skipped", "left out")):
        rows = [row for row in found["candidates"] if row["status"] == status]
        said += [f"{word}: {row['id']}: {row['reason']}" for row in rows]
    return [*said, *(f"note: {note}" for note in found["notes"])]
