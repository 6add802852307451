"""The answer of a comparison as plain data: rows, what no other row beats, and which choice to take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

import plait
from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.lineage import lineage
from plait.comparison.answer import Standing, front, recommend
from plait.comparison.candidates import SEPARATE, Candidate
from plait.comparison.cells import Cell
from plait.comparison.measures import machine, size_of_sources
from plait.comparison.plan import ComparisonPlan
from plait.evaluation.outcome import RowSums
from plait.evaluation.relative import Relative, relative_scores, unmeasured
from plait.reports.front import portable

SCHEMA = 1


@dataclass(frozen=True)
class Tried:
    """What became of a candidate: `done`, `failed` or `skipped`, and why."""

    candidate: Candidate
    status: str
    reason: str | None = None
    cell: Cell | None = None
    told: Mapping[str, Any] = field(default_factory=dict)


def summary_of(job: ComparisonPlan, tried: Sequence[Tried], *, seconds: float) -> dict[str, Any]:
    """Returns the answer; `docs/compare.md` describes it."""
    material, recipe = job.situation.material, job.recipe
    cells = {t.candidate.id: t.cell for t in tried if t.cell is not None}
    sums: dict[str, Mapping[str, RowSums]] = {name: cell.sums for name, cell in cells.items()}
    apart = sums[SEPARATE]
    relative = relative_scores(sums, apart, seed=recipe.seed)
    notes = [*material.notes, *unmeasured(apart, seed=recipe.seed).values(), *failures(tried)]
    standings = [standing(cells[name], relative[name]) for name in cells]
    choice = recommend(standings, recipe.prefer)
    told = {"prefer": choice.prefer, "level_with": list(choice.level_with)}
    found: dict[str, Any] = finite({
        "schema": SCHEMA,
        "plait": plait.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "machine": dict(machine()),
        "recipe": portable(recipe.model_dump(mode="json", exclude_none=True)),
        "sources": [source_row(source, material.task_of(source.name)) for source in material.sources],
        "tasks": [
            {"name": t.name, "metric": t.metric, "rows": len(t.rows), "test_from": t.origin, "overlap": t.overlap,
             "labels": None if t.labels is None else list(t.labels)}
            for t in material.tests
        ],
        "possible": [way.to_dict() for way in job.situation.ways],
        "candidates": [row(job, one, relative) for one in tried],
        "pareto": front(standings),
        "best": choice.best,
        "recommended": None if choice.name is None else {"id": choice.name, "reason": choice.reason, **told},
        "conflicts": None,
        "importance": None,
        "notes": notes,
    })  # fmt: skip
    return found


def failures(tried: Sequence[Tried]) -> list[str]:
    """Returns a note for each candidate that failed."""
    return [f"{t.candidate.id} failed: {t.reason}" for t in tried if t.status == "failed"]


def standing(cell: Cell, relative: Relative) -> Standing:
    """Returns what a candidate reached and costs."""
    found = cell.row
    errors = [about["ece"] for about in found["calibration"].values()]
    return Standing(
        found["id"], relative, found["parameters"], found["bytes"], found["latency"]["1"], found["seconds"],
        float(np.mean(errors)) if errors else None,
    )  # fmt: skip


def source_row(source: Checkpoint, task: str) -> dict[str, Any]:
    """Returns what the answer says of a source."""
    parameters, size = size_of_sources([source])
    about = lineage(source.origin, source.folder, source.recorded_base)
    tokenizer = source.tokenizer()
    return {
        "name": source.name,
        "model": portable(source.origin),
        "architecture": source.architecture,
        "base": portable(source.recorded_base),
        "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer)} tokens",
        "parameters": parameters,
        "bytes": size,
        "labels": None if source.labels is None else list(source.labels),
        "task": task,
        "license": about.get("license"),
        "digest": source.digest,
    }


def row(job: ComparisonPlan, tried: Tried, relative: Mapping[str, Relative]) -> dict[str, Any]:
    """Returns the row of one candidate."""
    candidate, cell = tried.candidate, tried.cell
    told = {"estimated_seconds": None, "estimated_bytes": None, **tried.told}
    found: dict[str, Any] = {
        "id": candidate.id, "way": candidate.way, "method": candidate.method, "title": candidate.title,
        "status": tried.status, "reason": tried.reason, **told, "folder": None, "recipe": ready(job, candidate),
        "cell": None if cell is None else job.keys.scored(candidate), "scores": {}, "mean_relative": None,
        "interval": None, "worst": None, "parameters": None, "bytes": None, "latency": {}, "seconds": None,
        "calibration": {}, "history": [], "routing": None, "diversity": None,
    }  # fmt: skip
    if cell is None:
        return found
    here = relative[candidate.id]
    known = {key: value for key, value in cell.row.items() if key in found and key not in ("id", "scores")}
    return {**found, **known, "scores": scores(cell, here), **here.to_dict()}


def scores(cell: Cell, relative: Relative) -> dict[str, Any]:
    """Returns scores by task, absolute and relative to the sources, each with its interval."""
    found = {}
    for task, score in cell.row["scores"].items():
        about = relative.tasks.get(task)
        low, high = (None, None) if about is None else (about.low, about.high)
        value = None if about is None else about.value
        found[task] = {**score, "relative": value, "relative_low": low, "relative_high": high}
    return found


def ready(job: ComparisonPlan, candidate: Candidate) -> dict[str, Any] | None:
    """Returns the recipe of a candidate, ready to run beside the comparison; None where nothing is to be made."""
    if candidate.recipe is None:
        return None
    folder = job.situation.folder
    output = str(folder.with_name(f"{folder.name}-{candidate.id.replace('/', '-')}"))
    found: dict[str, Any] = candidate.recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return {"combine": candidate.recipe.combine, **found, "output": output}


def finite(content: Any) -> Any:
    """Returns plain data with None for what JSON has no number for."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content
