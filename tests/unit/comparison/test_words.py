"""A comparison in words: the table, what was left out."""

from __future__ import annotations

from typing import Any

from plait.comparison.words import advice, by_score, marks, number, table


def row(name: str, mean: float | None, status: str = "done", reason: str | None = None) -> dict[str, Any]:
    scored = mean is not None
    return {
        "id": name, "status": status, "reason": reason, "mean_relative": mean,
        "interval": [0.9, 1.0] if scored else None, "worst": {"task": "mood", "relative": 0.8} if scored else None,
        "scores": {"mood": {"value": 0.75}} if scored else {}, "bytes": 91e6 if scored else None,
        "latency": {"1": 0.0042} if scored else None, "seconds": 12.0 if scored else None,
    }  # fmt: skip


FOUND: dict[str, Any] = {
    "sources": [{"name": "mood"}, {"name": "topic"}],
    "tasks": [{"name": "mood"}],
    "candidates": [
        row("separate", 1.0), row("merge/ties", None, "failed", "out of luck"), row("merge/average", 0.8),
        row("merge/heads", 0.97), row("merge/slerp", None, "skipped", "merges exactly 2 sources"),
    ],
    "pareto": ["separate", "merge/heads"],
    "recommended": {"id": "merge/heads", "reason": "It keeps most."},
    "notes": ["topic: no test rows"],
}  # fmt: skip


def test_the_best_come_first_and_what_was_not_scored_last() -> None:
    names = [found["id"] for found in by_score(FOUND)]
    assert names == ["separate", "merge/heads", "merge/average", "merge/ties", "merge/slerp"]


def test_the_table_marks_the_choice() -> None:
    rows = table(FOUND)
    assert [cells[""] for cells in rows] == ["* separate", "→ merge/heads", "  merge/average"]
    assert rows[1]["kept"] == "97.0 %"
    assert rows[1]["95 %"] == "90.0 – 100.0"
    assert rows[1]["worst task"] == "mood 80.0 %"
    assert (rows[1]["MB"], rows[1]["ms a text"], rows[1]["s to make"]) == ("91.0", "4.2", "12.0")
    assert rows[1]["mood"] == "0.750"
    assert marks(FOUND, "merge/average") == "  "


def test_failures_and_what_was_left_out_are_said() -> None:
    said = advice(FOUND)
    assert said[0] == "Recommended: merge/heads. It keeps most."
    assert "failed: merge/ties: out of luck" in said
    assert "left out: merge/slerp: merges exactly 2 sources" in said
    assert said[-1] == "note: topic: no test rows"


def test_numbers_have_as_many_digits_as_say_something() -> None:
    assert [number(value, 1) for value in (None, 123.4, 12.34, 0.0567)] == ["–", "123", "12.3", "0.057"]
