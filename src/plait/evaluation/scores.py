"""Scores of a model on its tasks, absolute and relative to the models it was made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from plait.checkpoints.checkpoint import open_checkpoint
from plait.checkpoints.tokenizers import reading_up_to
from plait.data import Examples, Kind, ProblemType
from plait.errors import DataError, PlaitError, RecipeError, did_you_mean, listed
from plait.evaluation import predict_logits, primary_metric
from plait.evaluation.notebook import html
from plait.evaluation.outcome import RESAMPLES, Answered, Interval

logger = logging.getLogger("plait")


LESS_IS_BETTER = frozenset({"perplexity"})


@dataclass(frozen=True)
class TaskScores:
    """One task's metrics, and the same metrics of each source on the same rows; of ensembles coverage and risk.

    `outcome` holds the answers themselves, `interval` where the primary metric lies in resampled data.
    """

    metrics: Mapping[str, float]
    primary: str
    examples: int
    sources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    curve: Mapping[str, Sequence[float]] = field(default_factory=dict)
    outcome: Answered | None = field(default=None, repr=False, compare=False)
    interval: Interval | None = None

    @property
    def relative(self) -> float | None:
        """Returns the primary metric divided by the best source's; None without a source above zero.

        The other way round where less is better, so that more than 1 is better than the source.
        """
        best = self.best
        if best is None or best <= 0:
            return None
        mine = self.metrics[self.primary]
        return best / mine if self.primary in LESS_IS_BETTER else mine / best

    @property
    def best(self) -> float | None:
        """Returns the primary metric of the best source; None without one."""
        better = min if self.primary in LESS_IS_BETTER else max
        return better((s[self.primary] for s in self.sources.values()), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {
            "metrics": dict(self.metrics),
            "primary": self.primary,
            "examples": self.examples,
            "sources": {name: dict(metrics) for name, metrics in self.sources.items()},
            "relative": self.relative,
            **({"selective_prediction": dict(self.curve)} if self.curve else {}),
            **({} if self.interval is None else {"interval": asdict(self.interval)}),
        }


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of one model: a `TaskScores` per task; `artifact` says what kind of model it is."""

    model: str
    tasks: Mapping[str, TaskScores]
    artifact: str = "checkpoint"

    def __repr__(self) -> str:
        lines = []
        for row in self.rows():
            around = "" if row["95 %"] in ("", "–") else f" ({row['95 %']})"
            beside = "" if row["relative"] in ("", "–") else f", {row['relative']} of the source"
            lines.append(f"  {row['task']}: {row['metric']} {row['score']}{around}{beside}, {row['examples']} examples")
        return "\n".join([f"Evaluation of {self.model}", *lines])

    def _repr_html_(self) -> str:
        return html(f"Evaluation of {self.model}", {}, self.rows())

    def __getitem__(self, task: str) -> Mapping[str, float]:
        return self.tasks[task].metrics

    @property
    def mean_relative(self) -> float | None:
        """Returns the mean over tasks of the score relative to the source; None when a task has no source."""
        found = [scores.relative for scores in self.tasks.values()]
        known = [value for value in found if value is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None

    @property
    def mean(self) -> float | None:
        """Returns the mean of the primary metric, where several tasks or files have the same one."""
        names = {scores.primary for scores in self.tasks.values()}
        if len(self.tasks) < 2 or len(names) > 1:
            return None
        return sum(scores.metrics[scores.primary] for scores in self.tasks.values()) / len(self.tasks)

    def with_intervals(self, *, resamples: int = RESAMPLES, seed: int = 0) -> Evaluation:
        """Returns the same with a bootstrap interval around each primary metric.

        Args:
            resamples: how many; 0 leaves intervals out.
            seed: of the draws.
        """
        tasks = {
            name: scores
            if scores.outcome is None
            else replace(scores, interval=scores.outcome.interval(scores.primary, resamples=resamples, seed=seed))
            for name, scores in self.tasks.items()
        }
        return replace(self, tasks=tasks)

    def per_class(self) -> dict[str, list[dict[str, Any]]]:
        """Returns per task precision, recall, F1 and number of examples of each label."""
        return {n: s.outcome.per_class() for n, s in self.tasks.items() if s.outcome is not None}

    def predictions(self) -> dict[str, list[Any]]:
        """Returns every scored row in columns: text, label and prediction, and its task where there are several."""
        tables = {name: s.outcome.columns() for name, s in self.tasks.items() if s.outcome is not None}
        if len(self.tasks) == 1:
            return next(iter(tables.values()), {})
        known = dict.fromkeys(column for table in tables.values() for column in table)
        found: dict[str, list[Any]] = {"task": [n for n, table in tables.items() for _ in table["row"]]}
        for column in known:
            found[column] = [v for t in tables.values() for v in t.get(column, [None] * len(t["row"]))]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, ready for JSON."""
        tasks = {name: scores.to_dict() for name, scores in self.tasks.items()}
        mean = {} if self.mean is None else {"mean": self.mean}
        return {"model": self.model, "tasks": tasks, **mean, "mean_relative": self.mean_relative}

    def rows(self) -> list[dict[str, str]]:
        """Returns a table: a row per task, with the primary metric of result and source and all other metrics."""
        found = [_row(name, scores) for name, scores in self.tasks.items()]
        if self.mean is None:
            return found
        primary, total = found[0]["metric"], sum(scores.examples for scores in self.tasks.values())
        relative = "–" if self.mean_relative is None else f"{100 * self.mean_relative:.1f} %"
        last = {"metric": primary, "score": f"{self.mean:.3f}", "relative": relative, "examples": str(total)}
        return [*found, {**dict.fromkeys(found[0], ""), "task": "mean", **last}]


def _row(name: str, scores: TaskScores) -> dict[str, str]:
    best = scores.best
    others = ", ".join(
        f"{metric} {value:,d}" if isinstance(value, int) else f"{metric} {value:.3f}"
        for metric, value in scores.metrics.items()
        if metric != scores.primary
    )
    return {
        "task": name,
        "metric": scores.primary,
        "score": f"{scores.metrics[scores.primary]:.3f}",
        "95 %": "–" if scores.interval is None else str(scores.interval),
        "source": "–" if best is None else f"{best:.3f}",
        "relative": "–" if scores.relative is None else f"{100 * scores.relative:.1f} %",
        "examples": str(scores.examples),
        "others": others,
    }


def recorded_logits(  # noqa: PLR0917 - what predicting takes
    name: str,
    about: Mapping[str, Any],
    examples: Examples,
    batch_size: int,
    max_length: int | None,
    trust_remote_code: bool,
) -> Tensor | None:
    """Returns a teacher's logits, or None (with a warning) when it is gone or its weights have changed."""
    try:
        teacher = open_checkpoint(
            about["origin"],
            name=name,
            revision=about.get("revision"),
            trust_remote_code=trust_remote_code,
            ask_hub=False,
        )
        if teacher.digest != about.get("digest"):
            logger.warning("teacher %s (%s) has changed: left out", name, about["origin"])
            return None
        model, tokenizer = teacher.model(), teacher.tokenizer()
        settings: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
        with reading_up_to(tokenizer, max_length):
            rows = predict_logits(model, tokenizer, examples.unlabelled(), **settings)
    except PlaitError as error:
        logger.warning("teacher %s cannot be scored: %s", name, error)
        return None
    return torch.stack(rows)


def of_tasks(
    names: Mapping[str | None, tuple[str, ...]], tasks: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Returns the names of labels by task.

    Raises:
        RecipeError: names for a task that is not there, or for none of several.
    """
    if None in names:
        if len(tasks) > 1:
            raise RecipeError(f"labels of which task? give TASK=NAME,NAME with one of {', '.join(tasks)}")
        return {tasks[0]: names[None]}
    found = {str(task): given for task, given in names.items()}
    if strangers := [task for task in found if task not in tasks]:
        raise RecipeError(listed(f"labels of no task {t!r}{did_you_mean(t, tasks)}" for t in strangers))
    return found


def name_data(data: Any, tasks: tuple[str, ...], *, free: bool = False) -> dict[str, Any]:
    """Returns data by task; data alone is that of the only task. With `free`, tasks may have any name.

    Raises:
        RecipeError: a task that does not exist (did you mean), or data alone for several tasks.
    """
    if not is_by_task(data, tasks):
        if len(tasks) != 1:
            raise RecipeError(
                f"which task is this data for? give --data TASK=FILE with one of {', '.join(tasks)}"
            )
        return {tasks[0]: data}
    strangers = [] if free else [name for name in data if name not in tasks]
    if strangers:
        raise RecipeError(listed(f"no task {name!r}{did_you_mean(str(name), tasks)}" for name in strangers))
    return dict(data)


def is_by_task(data: Any, tasks: tuple[str, ...]) -> bool:
    """Returns whether a mapping holds data by task: not one specification, and not the columns of one table."""
    if not isinstance(data, Mapping) or not data or "path" in data:
        return False
    return any(name in tasks for name in data) or not all(map(_is_column, data.values()))


def _is_column(values: Any) -> bool:
    """Says whether values are a column in memory, such as a list or an array, rather than data of their own."""
    whole = isinstance(values, str | bytes | Mapping | Examples) or hasattr(values, "column_names")
    return hasattr(values, "__len__") and not whole and not hasattr(values, "columns")


def primary_of(kind: str, problem_type: str | None) -> str:
    """Returns the metric that stands for a head.

    Raises:
        DataError: a body without a head, which has nothing to score.
    """
    if kind == "body":
        raise DataError("a body without a head cannot be evaluated: expected a head, or a language model of texts")
    return primary_metric(cast(Kind, kind), cast("ProblemType | None", problem_type))
