"""Scores of a merged or plain checkpoint on labelled data, beside those of its sources."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from plait.api.ensemble_scores import saved_scores
from plait.api.ensembles import SavedEnsemble, is_ensemble, is_one_model
from plait.api.inputs import read
from plait.api.rivals import teacher_scores
from plait.api.students import Student
from plait.checkpoints.source import open_checkpoint, rename_labels
from plait.data import Examples, Kind, ProblemType, align_labels
from plait.errors import DataError, PlaitError, RecipeError, did_you_mean, listed
from plait.evaluation import evaluate_model, primary_metric
from plait.label_names import placeholders, told
from plait.merging.manifest import Task, is_merged
from plait.merging.merged import Merged
from plait.report.scores import Evaluation, TaskScores

logger = logging.getLogger("plait")
Scorer = Callable[[Any, Any, Examples], dict[str, float]]


def evaluate(
    model: str | Path | Merged | SavedEnsemble | Student,
    data: Any,
    *,
    sources: bool = True,
    batch_size: int = 32,
    max_length: int | None = None,
    examples: int | None = None,
    seed: int = 0,
    out_of_scope: Any = None,
    labels: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Returns scores on labelled data, absolute and relative to each source on the same rows.

    Args:
        model: a merged checkpoint, an ensemble, a student, or a plain one (folder, Hub id, or what made it returned).
        data: task -> data (a file, a Dataset, columns); for a model with one task the data alone.
        sources: whether to score the sources of a merged checkpoint or the teachers of a student too, where they can
            still be found.
        batch_size: texts at a time.
        max_length: tokens a text is cut at.
        examples: a random subset of this size; default all.
        seed: of the subset.
        out_of_scope: texts that belong to no class, which an ensemble should doubt.
        labels: names of a head's labels in its order, such as `["negative", "positive"]`, where its own are
            placeholders (`LABEL_0`, `0`); task -> names for a merged checkpoint.
        revision: of a Hub id.
        trust_remote_code: whether a checkpoint may run its own code.

    Raises:
        PlaitError: an unknown task, unusable data, labels that the head does not have.
    """

    def read_data(entry: Any) -> Examples:
        return read(entry, limit=examples, seed=seed)

    def score(network: Any, tokenizer: Any, chosen: Examples) -> dict[str, float]:
        return evaluate_model(network, tokenizer, chosen, batch_size=batch_size, max_length=max_length)

    if isinstance(model, SavedEnsemble | Student):
        model = model.folder
    names = label_names(labels)
    settings: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
    if is_ensemble(model) or is_one_model(model):
        (task, entry), *others = name_data(data, ("model",), free=True).items()
        if others:
            raise RecipeError(f"{model} is an ensemble for one task: give --data once")
        if names:
            raise RecipeError("labels (--labels) name those of a merged or plain checkpoint, not of an ensemble")
        strange = None if out_of_scope is None else read_data(out_of_scope)
        found = saved_scores(str(model), read_data(entry), strange, members=sources, **settings)
        return Evaluation(str(model), {task: found})
    if out_of_scope is not None:
        raise RecipeError(f"--out-of-scope needs an ensemble (one member will do); {model} is none")
    if not isinstance(model, Merged) and not is_merged(model):
        mine = only(names, model)
        plain = open_checkpoint(model, revision=revision, trust_remote_code=trust_remote_code, labels=mine)
        (task, entry), *others = name_data(data, ("model",), free=True).items()
        if others:
            raise RecipeError(f"{model} is a plain checkpoint with one task: give --data once")
        primary = primary_of(plain.kind, plain.problem_type)
        chosen = read_data(entry)
        metrics = score(plain.model(), plain.tokenizer(), chosen)
        settings |= {"trust_remote_code": trust_remote_code}
        known = teacher_scores(plain.folder, chosen, **settings) if sources else {}
        return Evaluation(str(model), {task: TaskScores(metrics, primary, len(chosen), known)})
    merged = model if isinstance(model, Merged) else Merged(model)
    named = name_data(data, merged.tasks)
    called = of_tasks(names, merged.tasks)
    options: dict[str, Any] = {"sources": sources, "trust_remote_code": trust_remote_code}
    scores = {
        task: score_task(merged, task, read_data(entry), score, labels=called.get(task), **options)
        for task, entry in named.items()
    }
    return Evaluation(str(merged.folder), scores)


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


def label_names(labels: Any) -> dict[str | None, tuple[str, ...]]:
    """Returns the names of labels by task; those of the only head under None.

    Raises:
        RecipeError: something else than names.
    """
    by_task = labels if isinstance(labels, Mapping) else {} if labels is None else {None: labels}
    found = {
        task: told(names) if isinstance(names, str) else tuple(names) if isinstance(names, list | tuple) else ()
        for task, names in by_task.items()
    }
    if odd := [str(task or "labels") for task, names in found.items() if not names]:
        raise RecipeError(f"labels of {listed(odd)}: expected names in the head's order, such as negative,positive")
    return found


def only(names: Mapping[str | None, tuple[str, ...]], model: Any) -> tuple[str, ...] | None:
    """Returns the names given for the only head there is.

    Raises:
        RecipeError: names for several.
    """
    if len(names) > 1:
        raise RecipeError(f"{model} is a plain checkpoint with one head: give --labels once")
    return next(iter(names.values()), None)


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
        raise DataError("a body without a head cannot be evaluated")
    return primary_metric(cast(Kind, kind), cast("ProblemType | None", problem_type))


def score_task(
    merged: Merged,
    task: str,
    examples: Examples,
    score: Scorer,
    *,
    sources: bool,
    trust_remote_code: bool,
    labels: tuple[str, ...] | None = None,
) -> TaskScores:
    """Returns one task's scores, with those of its sources where they can still be read."""
    about = merged.about(task)
    primary = primary_of(about.kind, about.problem_type)
    network = merged.task(task)
    if labels is not None:
        network.config = copy.deepcopy(network.config)
        rename_labels(network.config, labels, about.labels, f"task {task}")
        about = replace(about, labels=labels)
    metrics = score(network, merged.tokenizer, examples)
    named = by_name(examples, about)
    found = {
        name: source_scores(merged, name, named, score, trust_remote_code=trust_remote_code, labels=labels)
        for name in (about.sources if sources else ())
    }
    known = {name: metrics for name, metrics in found.items() if metrics is not None}
    return TaskScores(metrics, primary, len(examples), known)


def by_name(examples: Examples, about: Task) -> Examples:
    """Returns examples whose label indices carry the task's label names: a source may count its labels differently."""
    indexed = examples.label_names is None and all(isinstance(label, int) for label in examples.labels or ())
    if not indexed or about.labels is None:
        return examples
    return align_labels(examples, about.labels, problem_type="single_label_classification")


def source_scores(
    merged: Merged,
    name: str,
    examples: Examples,
    score: Scorer,
    *,
    trust_remote_code: bool,
    labels: tuple[str, ...] | None = None,
) -> dict[str, float] | None:
    """Returns a source's scores, or None (with a warning) when it is gone or its weights have changed."""
    record = merged.manifest.sources[name]
    try:
        source = open_checkpoint(
            record["origin"], name=name, revision=record.get("revision"), trust_remote_code=trust_remote_code,
            ask_hub=False,
        )  # fmt: skip
        if labels is not None and placeholders(source.labels):
            source = open_checkpoint(
                record["origin"],
                name=name,
                revision=record.get("revision"),
                trust_remote_code=trust_remote_code,
                labels=labels,
                ask_hub=False,
            )
        if source.digest != record.get("digest"):
            logger.warning("source %s (%s) has changed since the merge: left out", name, record["origin"])
            return None
        return score(source.model(), source.tokenizer(), examples)
    except PlaitError as error:
        logger.warning("source %s cannot be scored: %s", name, error)
        return None
