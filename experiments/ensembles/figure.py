"""The picture of the table: every variant on every task, and its mean difference from separate models."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from finished import FIRST, PRIMARY, ROWS, SINGLE, SINGLES, Results, error
from variants import SEPARATE

COLUMNS = 4
OURS, STANDARD, OTHERS = "#0f766e", "#c2410c", "#475569"


def color(row: str) -> str:
    return OURS if row.startswith("camero") else STANDARD if row in {SEPARATE.name, *SINGLES} else OTHERS


def draw(found: Results, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "plait"
    import matplotlib.pyplot as plt

    rows = [r for r in ROWS if r != FIRST and any(found.of(task, r) for task in found.tasks)][::-1]
    count = len(found.tasks) + 1
    lines = -(-count // COLUMNS)
    figure, axes = plt.subplots(
        lines, COLUMNS, figsize=(14, (0.26 * len(rows) + 1.0) * lines + 0.4), sharey=True, squeeze=False
    )
    for axis, task in zip(axes.flat, found.tasks, strict=False):
        one_task(axis, found, task, rows)
    overall(axes.flat[count - 1], found, rows)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    axes[0, 0].set_yticks(range(len(rows)), rows)
    for axis in axes.flat:
        axis.grid(axis="x", alpha=0.25)
        axis.tick_params(labelsize=8.5, length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
    title = "test scores, % (dots: seeds, bars: means; lines: the means of one model, dotted, and of separate models)"
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(file, facecolor="white", metadata={"Date": None})


def one_task(axis: Any, found: Results, task: str, rows: list[str]) -> None:
    for height, row in enumerate(rows):
        values = [100 * v for v in found.values(task, row, PRIMARY).values()]
        axis.plot(
            values, [height] * len(values), "o", color=color(row), alpha=0.35, markersize=5, markeredgewidth=0
        )
        if values:
            mean = statistics.mean(values)
            axis.plot(mean, height, "|", color=color(row), markersize=12, markeredgewidth=2.5)
    for row, style in ((SINGLE, ":"), (SEPARATE.name, "-")):
        values = list(found.values(task, row, PRIMARY).values())
        if values:
            axis.axvline(100 * statistics.mean(values), color=STANDARD, linewidth=0.9, linestyle=style)
    axis.set_title(f"{task} ({found.metric(task)})", loc="left", fontsize=9.5)


def overall(axis: Any, found: Results, rows: list[str]) -> None:
    """Draws the mean difference from separate models, with the standard error over tasks."""
    for height, row in enumerate(rows):
        values = [100 * v for v in found.differences(row, SEPARATE.name, PRIMARY)]
        if values:
            mean, noise = statistics.mean(values), error(values) or 0.0
            axis.plot([mean - noise, mean + noise], [height, height], color=color(row), linewidth=2)
            axis.plot(mean, height, "o", color=color(row), markersize=5)
    axis.axvline(0, color=STANDARD, linewidth=0.9)
    axis.set_title("all tasks: points less separate models", loc="left", fontsize=9.5)
