"""Scores of a model on its tasks, absolute and relative to the models it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TaskScores:
    """One task's metrics, and the same metrics of each source on the same rows; of ensembles coverage and risk."""

    metrics: Mapping[str, float]
    primary: str
    examples: int
    sources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    curve: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def relative(self) -> float | None:
        """Returns the primary metric divided by the best source's; None without a source above zero."""
        best = max((s[self.primary] for s in self.sources.values()), default=0.0)
        return self.metrics[self.primary] / best if best > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {
            "metrics": dict(self.metrics),
            "primary": self.primary,
            "examples": self.examples,
            "sources": {name: dict(metrics) for name, metrics in self.sources.items()},
            "relative": self.relative,
            **({"selective_prediction": dict(self.curve)} if self.curve else {}),
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model: a `TaskScores` per task."""

    model: str
    tasks: Mapping[str, TaskScores]

    def __getitem__(self, task: str) -> Mapping[str, float]:
        return self.tasks[task].metrics

    @property
    def mean_relative(self) -> float | None:
        """Returns the mean over tasks of the score relative to the source; None when a task has no source."""
        found = [scores.relative for scores in self.tasks.values()]
        known = [value for value in found if value is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, ready for JSON."""
        tasks = {name: scores.to_dict() for name, scores in self.tasks.items()}
        return {"model": self.model, "tasks": tasks, "mean_relative": self.mean_relative}

    def rows(self) -> list[dict[str, str]]:
        """Returns a table: a row per task, with the primary metric of result and source and all other metrics."""
        return [_row(name, scores) for name, scores in self.tasks.items()]


def _row(name: str, scores: TaskScores) -> dict[str, str]:
    best = max((s[scores.primary] for s in scores.sources.values()), default=None)
    others = ", ".join(
        f"{metric} {value:.3f}" for metric, value in scores.metrics.items() if metric != scores.primary
    )
    return {
        "task": name,
        "metric": scores.primary,
        "score": f"{scores.metrics[scores.primary]:.3f}",
        "source": "–" if best is None else f"{best:.3f}",
        "relative": "–" if scores.relative is None else f"{100 * scores.relative:.1f} %",
        "examples": str(scores.examples),
        "others": others,
    }
