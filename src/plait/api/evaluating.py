"""Scores of a merged or plain checkpoint on labelled data, beside those of its sources."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from plait.api.statistics import read
from plait.checkpoints.source import open_checkpoint
from plait.data import Examples, Kind, ProblemType
from plait.errors import DataError, PlaitError, RecipeError, did_you_mean, listed
from plait.evaluation import evaluate_model, primary_metric
from plait.merging.manifest import is_merged
from plait.merging.merged import Merged
from plait.report.scores import Evaluation, TaskScores

logger = logging.getLogger("plait")
Scorer = Callable[[Any, Any, Examples], dict[str, float]]


def evaluate(
    model: str | Path | Merged,
    data: Any,
    *,
    sources: bool = True,
    batch_size: int = 32,
    max_length: int | None = None,
    examples: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Returns scores on labelled data, absolute and relative to each source on the same rows.

    Args:
        model: a merged checkpoint, or a plain one (folder or Hub id).
        data: task -> data (a file, a Dataset, columns); for a model with one task the data alone.
        sources: whether to score the sources of a merged checkpoint too, where they can still be found.
        batch_size: texts at a time.
        max_length: tokens a text is cut at.
        examples: a random subset of this size; default all.
        seed: of the subset.
        revision: of a Hub id.
        trust_remote_code: whether a checkpoint may run its own code.

    Raises:
        PlaitError: an unknown task, unusable data, labels that the head does not have.
    """

    def read_data(entry: Any) -> Examples:
        return read(entry, limit=examples, seed=seed)

    def score(network: Any, tokenizer: Any, chosen: Examples) -> dict[str, float]:
        return evaluate_model(network, tokenizer, chosen, batch_size=batch_size, max_length=max_length)

    if not isinstance(model, Merged) and not is_merged(model):
        plain = open_checkpoint(model, revision=revision, trust_remote_code=trust_remote_code)
        (task, entry), *others = name_data(data, ("model",), free=True).items()
        if others:
            raise RecipeError(f"{model} is a plain checkpoint with one task: give --data once")
        chosen = read_data(entry)
        metrics = score(plain.model(), plain.tokenizer(), chosen)
        primary = primary_of(plain.kind, plain.problem_type)
        return Evaluation(str(model), {task: TaskScores(metrics, primary, len(chosen))})
    merged = model if isinstance(model, Merged) else Merged(model)
    named = name_data(data, merged.tasks)
    return Evaluation(
        str(merged.folder),
        {
            task: score_task(merged, task, read_data(entry), score, sources=sources)
            for task, entry in named.items()
        },
    )


def name_data(data: Any, tasks: tuple[str, ...], *, free: bool = False) -> dict[str, Any]:
    """Returns data by task; data alone is that of the only task.

    Raises:
        RecipeError: a task that does not exist (did you mean), or data alone for several tasks.
    """
    if isinstance(data, Mapping) and "path" not in data and (free or any(name in tasks for name in data)):
        strangers = [] if free else [name for name in data if name not in tasks]
        if strangers:
            raise RecipeError(listed(f"no task {n!r}{did_you_mean(n, tasks)}" for n in strangers))
        if data:
            return dict(data)
    elif (
        isinstance(data, Mapping)
        and "path" not in data
        and all(isinstance(v, str | Path) for v in data.values())
    ):
        raise RecipeError(listed(f"no task {n!r}{did_you_mean(str(n), tasks)}" for n in data))
    if len(tasks) != 1:
        raise RecipeError(
            f"which task is this data for? give --data TASK=FILE with one of {', '.join(tasks)}"
        )
    return {tasks[0]: data}


def primary_of(kind: str, problem_type: str | None) -> str:
    """Returns the metric that stands for a head.

    Raises:
        DataError: a body without a head, which has nothing to score.
    """
    if kind == "body":
        raise DataError("a body without a head cannot be evaluated")
    return primary_metric(cast(Kind, kind), cast("ProblemType | None", problem_type))


def score_task(merged: Merged, task: str, examples: Examples, score: Scorer, *, sources: bool) -> TaskScores:
    """Returns one task's scores, with those of its sources where they can still be read."""
    about = merged.about(task)
    metrics = score(merged.task(task), merged.tokenizer, examples)
    found = {name: source_scores(merged, name, examples, score) for name in about.sources} if sources else {}
    known = {name: metrics for name, metrics in found.items() if metrics is not None}
    return TaskScores(metrics, primary_of(about.kind, about.problem_type), len(examples), known)


def source_scores(merged: Merged, name: str, examples: Examples, score: Scorer) -> dict[str, float] | None:
    """Returns a source's scores, or None (with a warning) when it is gone or its weights have changed."""
    record = merged.manifest.sources[name]
    try:
        source = open_checkpoint(record["origin"], name=name, revision=record.get("revision"))
        if source.digest != record["digest"]:
            logger.warning("source %s (%s) has changed since the merge: left out", name, record["origin"])
            return None
        return score(source.model(), source.tokenizer(), examples)
    except PlaitError as error:
        logger.warning("source %s cannot be scored: %s", name, error)
        return None
