"""Scores relative to the models that are replaced, with intervals over the test rows that both answered."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plait.errors import DataError
from plait.evaluation.outcome import LEVEL, RESAMPLES, Array, RowSums, resampled

LEAST = 0.05
"""A source's score below which nothing is said relative to it: a ratio to almost nothing is noise."""


@dataclass(frozen=True)
class RelativeScore:
    """A score on one task divided by the source's on the same rows; its interval where there are two rows or more."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Relative:
    """A model's scores relative to its sources.

    Attributes:
        tasks: relative score of each task that has one.
        mean: over these tasks; None where there is none.
        low: lower end of the mean's interval.
        high: upper end.
        worst: the task that suffers most.
        samples: the mean in each bootstrap sample, [R]; those of two models from one call or one seed are paired.
    """

    tasks: Mapping[str, RelativeScore]
    mean: float | None
    low: float | None = None
    high: float | None = None
    worst: str | None = None
    samples: Array | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        worst = None if self.worst is None else {"task": self.worst, "relative": self.tasks[self.worst].value}
        interval = None if self.low is None else [self.low, self.high]
        return {"mean_relative": self.mean, "interval": interval, "worst": worst}


@dataclass(frozen=True)
class Difference:
    """One mean relative score less another; `level` where the interval leaves open which is better."""

    value: float
    low: float | None
    high: float | None

    @property
    def level(self) -> bool:
        """Returns whether the difference is smaller than its interval: 0 lies in it, or there is none."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def ratio(score: Any, source: Any, *, falling: bool = False) -> Any:
    """Returns score / source, or source / score where less is better, of numbers or arrays; NaN without sense."""
    above, below = (source, score) if falling else (score, source)
    positive = np.asarray(below) > 0
    return np.where(positive, np.asarray(above) / np.where(positive, below, 1.0), np.nan)


def unmeasured(
    sources: Mapping[str, RowSums], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, str]:
    """Returns per task on which nothing can be said relative to the source, why.

    A source scores clearly above zero when its score is at least `LEAST` and its bootstrap interval ends above 0. A
    task whose source does not is left out of means and of the worst task: dividing by almost nothing gives numbers
    whose size says nothing. It depends on the source alone, so all candidates are compared on the same tasks.
    """
    found = {}
    for task, sums in sources.items():
        if sums.falling:
            continue
        value = sums.value if len(sums.rows) else 0.0
        low = value
        if value >= LEAST and len(sums.rows) > 1:
            low = _ends(resampled([sums], resamples=resamples, seed=_of_task(seed, task))[0])[0] or 0.0
        if value < LEAST or low <= 0:
            found[task] = (
                f"task {task}: its source scores {value:.3f} on {len(sums.rows)} rows, not clearly above zero; nothing "
                "is said relative to that, and the task is left out of the mean"
            )
    return found


def relative_scores(
    candidates: Mapping[str, Mapping[str, RowSums]],
    sources: Mapping[str, RowSums],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Relative]:
    """Returns each candidate's scores relative to those of the sources on the same rows.

    The interval of the mean is the percentile bootstrap: in each sample rows are drawn with replacement, the same ones
    for every candidate and the source, and tasks independently. So what makes all models fail alike cancels, and two
    candidates can be subtracted sample by sample.

    Args:
        candidates: per candidate and task what its answers add to the score.
        sources: per task those of the model that is replaced; of several the best.
        resamples: how many samples.
        seed: of the draws. A task's rows depend on seed and task alone, so calls for one candidate each can be paired.

    Raises:
        DataError: a candidate that did not answer a task, or other rows than the source.
    """
    _check(candidates, sources)
    left_out = unmeasured(sources, resamples=resamples, seed=seed)
    tables: dict[str, dict[str, tuple[float, Array | None]]] = {name: {} for name in candidates}
    for task in (t for t in sources if t not in left_out):
        every = {name: answered[task] for name, answered in candidates.items()}
        for name, pair in _of_rows(every, sources[task], resamples, _of_task(seed, task)).items():
            tables[name][task] = pair
    return {name: _summary(table) for name, table in tables.items()}


def difference(one: Relative, other: Relative) -> Difference | None:
    """Returns by how much one model's mean relative score exceeds another's; None where one has no mean."""
    if one.mean is None or other.mean is None:
        return None
    if one.samples is None or other.samples is None:
        return Difference(one.mean - other.mean, None, None)
    return Difference(one.mean - other.mean, *_ends(one.samples - other.samples))


def _of_rows(
    every: Mapping[str, RowSums], source: RowSums, resamples: int, seed: list[int]
) -> dict[str, tuple[float, Array | None]]:
    """Returns per candidate its relative score on one task, and that in each sample."""
    values = {n: float(ratio(sums.value, source.value, falling=source.falling)) for n, sums in every.items()}
    if len(source.rows) < 2 or resamples < 1:
        return {name: (value, None) for name, value in values.items()}
    drawn = resampled([source, *every.values()], resamples=resamples, seed=seed)
    return {
        name: (values[name], ratio(scores, drawn[0], falling=source.falling))
        for name, scores in zip(every, drawn[1:], strict=True)
    }


def _summary(table: Mapping[str, tuple[float, Array | None]]) -> Relative:
    tasks = {
        task: RelativeScore(value, *((None, None) if samples is None else _ends(samples)))
        for task, (value, samples) in table.items()
    }
    if not tasks:
        return Relative({}, None)
    worst = min(tasks, key=lambda task: tasks[task].value)
    mean = float(np.mean([score.value for score in tasks.values()]))
    known = [samples for _, samples in table.values() if samples is not None]
    if len(known) < len(tasks):
        return Relative(tasks, mean, worst=worst)
    samples = np.mean(known, axis=0)
    return Relative(tasks, mean, *_ends(samples), worst, samples)


def _ends(samples: Array) -> tuple[float | None, float | None]:
    """Returns the interval that holds `LEVEL` of the samples in which the score is defined."""
    defined = samples[np.isfinite(samples)]
    if not len(defined):
        return None, None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _of_task(seed: int, task: str) -> list[int]:
    return [seed, zlib.crc32(task.encode())]


def _check(candidates: Mapping[str, Mapping[str, RowSums]], sources: Mapping[str, RowSums]) -> None:
    for name, answered in candidates.items():
        if missing := [task for task in sources if task not in answered]:
            raise DataError(f"{name} has no answers for {', '.join(missing)}; expected all tasks of the sources")
        for task, source in sources.items():
            if len(answered[task].rows) != len(source.rows):
                raise DataError(
                    f"task {task}: {name} answered {len(answered[task].rows)} rows and the source "
                    f"{len(source.rows)}; expected the same rows"
                )
