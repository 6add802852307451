"""What `run.py` has finished, and how values of several seeds are compared."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the experiments share

from grid import read
from tasks import RESULTS, TASKS
from variants import CORE, ONE_PASS, OTHER, SEPARATE

FIRST = "single (first)"
SINGLE = "single (mean of 4)"
SINGLES = (FIRST, SINGLE)
VARIANTS = (*(v.name for v in (*CORE[:3], *OTHER[:4], CORE[3], *OTHER[4:], CORE[4], *ONE_PASS)),)
UNCOUNTED = ("rte",)  # at chance for every row: its cells stand in the tables and in no mean
ROWS = (*SINGLES, *VARIANTS)
PRIMARY = "primary"  # stands for the metric that leads
EPOCH = "epoch"  # the one that was kept
BySeed = Mapping[int, float]


class Results:
    """All finished cells, and the tasks in order."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.cells: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        for cell in read(folder / "cells"):
            self.cells.setdefault((cell["task"], cell["variant"]), {})[cell["seed"]] = cell
        self.twice = read(folder / "twice")
        self.tasks = [task for task in TASKS if any(place[0] == task for place in self.cells)]

    def of(self, task: str, variant: str) -> dict[int, dict[str, Any]]:
        """Returns a row's cells by seed; the single model is the first of the separate ones."""
        return self.cells.get((task, SEPARATE.name if variant in SINGLES else variant), {})

    def values(self, task: str, variant: str, key: str) -> dict[int, float]:
        """Returns a score by seed, of the seeds that have it."""
        found = {seed: value(cell, variant, key) for seed, cell in self.of(task, variant).items()}
        return {seed: score for seed, score in sorted(found.items()) if score is not None}

    def difference(self, task: str, variant: str, other: str, key: str) -> list[float]:
        """Returns the differences of two rows over the seeds that both have."""
        a, b = self.values(task, variant, key), self.values(task, other, key)
        return [a[seed] - b[seed] for seed in a if seed in b]

    def differences(self, variant: str, other: str, key: str) -> list[float]:
        """Returns the mean difference of each task that both rows have and that counts."""
        return self.against(variant, key, other, key)

    def against(self, variant: str, key: str, other: str, other_key: str) -> list[float]:
        """Returns the same of two scores that may have different names."""
        found = []
        for task in self.counted:
            a, b = self.values(task, variant, key), self.values(task, other, other_key)
            if each := [a[seed] - b[seed] for seed in a if seed in b]:
                found.append(statistics.mean(each))
        return found

    @property
    def counted(self) -> list[str]:
        """Returns the tasks that say something."""
        return [task for task in self.tasks if task not in UNCOUNTED]

    def metric(self, task: str) -> str:
        """Returns the name of the score that leads."""
        return TASKS[task].metric

    def noise(self, task: str, variant: str, other: str) -> float:
        """Returns a standard error of the difference of two rows in the leading score.

        The larger of two: that over seeds, and that of one score on so many test texts, √(p (1 − p) / N) or, for a
        correlation, (1 − r²) / √N.
        """
        level = statistics.mean(self.values(task, other, PRIMARY).values())
        count = next(iter(self.of(task, other).values()))["texts"]["test"]
        share = level * (1 - level) if self.metric(task) == "accuracy" else (1 - level**2) ** 2
        sampled = math.sqrt(share / count)
        return max(sampled, error(self.difference(task, variant, other, PRIMARY)) or 0.0)

    def verdict(self, task: str, variant: str, other: str) -> str | None:
        """Returns better, level or worse; None where there is nothing to compare."""
        found = self.difference(task, variant, other, PRIMARY)
        if not found:
            return None
        mean, noise = statistics.mean(found), self.noise(task, variant, other)
        return "level" if abs(mean) <= noise else "better" if mean > 0 else "worse"


def value(cell: Mapping[str, Any], variant: str, key: str) -> float | None:
    """Returns a score of a cell, or None where it has none of that name."""
    key = cell["metric"] if key == PRIMARY else key
    if key == EPOCH:
        kept = kept_epochs(cell)
        return None if not kept else kept[0] if variant == FIRST else statistics.mean(kept)
    if variant not in SINGLES:
        return cell["metrics"].get(key)
    alone = cell["members_alone"]
    if key in alone[0]:
        return alone[0][key] if variant == FIRST else statistics.mean(member[key] for member in alone)
    outside = key.startswith(("auroc", "aupr")) and "mutual" not in key
    return cell.get("first_member", {}).get(key) if variant == FIRST and outside else None


def kept_epochs(cell: Mapping[str, Any]) -> list[float]:
    """Returns the epoch kept of each model trained by itself: the best, of level ones that of the lower NLL."""
    best: dict[float, tuple[tuple[float, float], float]] = {}
    for entry in cell["validation"]:
        member = entry.get("member", 0.0)
        (score,) = (value for name, value in entry.items() if name not in {"member", "epoch", "nll"})
        worth = score, -entry.get("nll", 0.0)
        if member not in best or worth > best[member][0]:
            best[member] = worth, entry["epoch"]
    return [epoch for _, epoch in best.values()]


def error(values: Sequence[float]) -> float | None:
    """Returns the standard error of a mean; None where one value has none."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def show(values: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    """Returns mean ± standard deviation, and how many seeds where that is not 3."""
    if not values:
        return "–"
    spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    count = "" if len(values) == 3 else f" ({len(values)})"
    return f"{scale * statistics.mean(values):.{digits}f}{spread}{count}"


def gap(values: Sequence[float], scale: float = 100, digits: int = 1, *, count: bool = True) -> str:
    """Returns a mean difference ± its standard error, and of how many."""
    if not values:
        return "–"
    noise = error(values)
    spread = "" if noise is None else f" ± {scale * noise:.{digits}f}"
    return f"{scale * statistics.mean(values):+.{digits}f}{spread}" + (f" ({len(values)})" if count else "")
