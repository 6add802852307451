"""What a row saves and costs: sizes and passes from its cells, latency from the benchmark."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from finished import SINGLES, Results
from tasks import ROOT
from variants import ONE_PASS, SWEPT, VARIANTS

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
        f"{passes['training_step'] / share + taught(row, cell):g} F",
        f"{passes['prediction'] / share:g}",
        latency(row),
    ]


def taught(row: str, cell: dict[str, Any]) -> float:
    """Returns what the models cost that a row learns from or averages: they were trained before it."""
    variant = VARIANTS.get(row)
    return 3.0 * cell["members"] if variant and (variant.teachers or variant.pooled) else 0.0


def latency(row: str) -> str:
    """Returns milliseconds a text, alone and in a batch of 32, where the benchmark says so."""
    found = measured().get(_kept(row))
    return "–" if found is None else f"{found['batch_1_ms']:.1f}, {found['batch_32_ms_per_text']:.1f} ms"


def latency_from() -> str:
    """Returns what the latency column holds."""
    if not measured():
        return "not measured yet"
    return (
        "milliseconds a text, one by one and in batches of 32 (medians of benchmarks/results/ensembles.json)"
    )


@cache
def measured() -> dict[str, dict[str, float]]:
    """Returns the medians by what a prediction is made with."""
    report: dict[str, Any] = json.loads(BENCHMARK.read_text()) if BENCHMARK.exists() else {}
    return dict(report.get("latency", {}))


def _kept(row: str) -> str:
    """Returns the benchmark's name of what a row predicts with: members over one encoder cost the same."""
    if row in SINGLES or (row in {v.name for v in ONE_PASS} and not row.startswith("hydra")):
        return "single"
    return "camero" if row in {"shared", "one"} or row.startswith("hydra") or row.startswith("camero") else row
