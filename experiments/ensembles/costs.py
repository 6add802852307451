"""What a row saves and costs: sizes and passes from its cells, latency from the benchmark."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from finished import SINGLES, Results
from tasks import ROOT
from variants import SWEPT

BENCHMARK = ROOT / "benchmarks" / "results" / "ensembles.json"


def costs(found: Results, row: str) -> list[str]:
    """Returns millions of parameters, megabytes, and forward passes of training and prediction, of the first task."""
    task = SWEPT if found.of(SWEPT, row) else next(task for task in found.tasks if found.of(task, row))
    cell = next(iter(found.of(task, row).values()))
    share = cell["members"] if row in SINGLES else 1
    passes = cell["forward_equivalents"]
    return [
        f"{cell['parameters']['saved'] / share / 1e6:.1f} M",
        f"{cell['megabytes'] / share:.0f}",
        f"{passes['training_step'] / share:g} F",
        f"{passes['prediction'] / share:g}",
        latency(row),
    ]


def latency(row: str) -> str:
    """Returns the milliseconds of one model's prediction, where the benchmark says so."""
    found = measured().get(row)
    return "–" if found is None else f"{found:.1f} ms"


def latency_from() -> str:
    """Returns what the latency column holds."""
    return "medians of benchmarks/results/ensembles.json" if measured() else "not measured yet"


@cache
def measured() -> dict[str, float]:
    """Returns the median milliseconds by row."""
    if not BENCHMARK.exists():
        return {}
    report: dict[str, Any] = json.loads(BENCHMARK.read_text())
    return dict(report.get("latency", {}))
