"""Scores of a merged checkpoint on labelled data, beside those of its sources."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint, rename_labels
from plait.checkpoints.embedders import embedder_of
from plait.data import Examples, align_labels
from plait.encoders.embedding import Embedder
from plait.errors import PlaitError
from plait.evaluation import outcome_of, outcome_scores
from plait.evaluation.embedding import PRIMARY as RANKS
from plait.evaluation.embedding import similarity, similarity_scores
from plait.evaluation.language import PRIMARY, language_outcome
from plait.evaluation.outcome import Outcome
from plait.evaluation.scores import Evaluation, TaskScores, primary_of
from plait.label_names import placeholders
from plait.merging.merged import Merged
from plait.reports.record import BASE, Task, origin_from

logger = logging.getLogger("plait")

Answer = Callable[[Any, Any, Examples], Outcome]


def scores_of(
    merged: Merged,
    data: Mapping[str, Examples],
    *,
    labels: Mapping[str, tuple[str, ...]] | None = None,
    sources: bool = True,
    batch_size: int = 32,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    opened: Mapping[str, Checkpoint] | None = None,
) -> Evaluation:
    """Returns the scores of a merged checkpoint's tasks on labelled data, beside those of their sources.

    Args:
        merged: the result.
        data: task -> labelled rows; with one task, each entry is scored as that task, whatever its name.
        sources: whether the sources are scored too.
        batch_size: texts at a time.
        max_length: tokens a text is cut at.
        trust_remote_code: whether a source may run its own code.
        labels: names of a task's labels, where its own are placeholders.
        opened: sources by name that are open already, as in the merge itself; others are opened where they lie.
    """
    if merged.language is not None:
        told: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
        return language_scores_of(
            merged, data, sources=sources, trust_remote_code=trust_remote_code, opened=opened or {}, **told
        )
    answer: Answer = partial(outcome_of, batch_size=batch_size, max_length=max_length)
    options: dict[str, Any] = {
        "sources": sources, "trust_remote_code": trust_remote_code, "opened": opened or {},
    }  # fmt: skip
    called = labels or {}
    if merged.embeds:
        sizes: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
        pairs = {name: _pairs(merged, name, examples, sizes, **options) for name, examples in data.items()}
        return Evaluation(str(merged.folder), pairs, merged.artifact)
    only = merged.tasks[0] if len(merged.tasks) == 1 else None
    scored = {
        name: score_task(merged, only or name, examples, answer, labels=called.get(only or name), **options)
        for name, examples in data.items()
    }
    return Evaluation(str(merged.folder), scored, merged.artifact)


def pair_scores(model: Embedder, tokenizer: Any, examples: Examples, **settings: Any) -> TaskScores:
    """Returns how well the cosines of an embedding model rank scored pairs."""
    outcome = similarity(model, tokenizer, examples, **settings)
    return TaskScores(similarity_scores(outcome), RANKS, len(examples), outcome=outcome)


def _pairs(
    merged: Merged,
    name: str,
    examples: Examples,
    settings: Mapping[str, Any],
    *,
    sources: bool,
    trust_remote_code: bool,
    opened: Mapping[str, Checkpoint],
) -> TaskScores:
    """Returns the scores of the embedding model that all tasks are, beside those of its sources or of one task's."""
    found = pair_scores(merged.embedder, merged.tokenizer, examples, **settings)
    asked = merged.tasks if name not in merged.tasks else (name,)
    names = [source for task in asked for source in merged.about(task).sources] if sources else []
    known: dict[str, Mapping[str, float]] = {}
    for source in names:
        answer = partial(_of_pairs, examples=examples, **settings)
        scores = from_source(merged, source, answer, opened.get(source), trust_remote_code=trust_remote_code)
        known |= {} if scores is None else {source: scores}
    return replace(found, sources=known)


def _of_pairs(source: Checkpoint, examples: Examples, **settings: Any) -> dict[str, float]:
    return dict(pair_scores(embedder_of(source), source.tokenizer(), examples, **settings).metrics)


def score_task(
    merged: Merged,
    task: str,
    examples: Examples,
    answer: Answer,
    *,
    sources: bool,
    trust_remote_code: bool,
    labels: tuple[str, ...] | None = None,
    opened: Mapping[str, Checkpoint],
) -> TaskScores:
    """Returns one task's scores, with those of its sources where they can still be read."""
    about = merged.about(task)
    primary = primary_of(about.kind, about.problem_type)
    network = merged.task(task)
    if labels is not None:
        network.config = copy.deepcopy(network.config)
        rename_labels(network.config, labels, about.labels, f"task {task}")
        about = replace(about, labels=labels)
    outcome = answer(network, merged.tokenizer_of(task), examples)
    named = by_name(examples, about)
    found = {
        name: source_scores(
            merged, name, named, answer, opened.get(name), trust_remote_code=trust_remote_code, labels=labels
        )
        for name in (about.sources if sources else ())
    }
    known = {name: metrics for name, metrics in found.items() if metrics is not None}
    return TaskScores(outcome_scores(outcome), primary, len(examples), known, outcome=outcome)


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
    answer: Answer,
    opened: Checkpoint | None = None,
    *,
    trust_remote_code: bool,
    labels: tuple[str, ...] | None = None,
) -> dict[str, float] | None:
    """Returns a source's scores, or None (with a warning) when it is gone or its weights have changed."""

    def scored(source: Checkpoint) -> dict[str, float]:
        return outcome_scores(answer(source.model(), source.tokenizer(), examples))

    return from_source(merged, name, scored, opened, trust_remote_code=trust_remote_code, labels=labels)


def from_source(
    merged: Merged,
    name: str,
    scored: Callable[[Checkpoint], dict[str, float]],
    opened: Checkpoint | None = None,
    *,
    trust_remote_code: bool,
    labels: tuple[str, ...] | None = None,
) -> dict[str, float] | None:
    """Returns what a source scores, or None (with a warning) when it is gone or its weights have changed."""
    record = merged.manifest.sources[name]
    again: Any = partial(
        open_checkpoint, origin_from(merged.folder, record["origin"]), name=name, revision=record.get("revision"),
        trust_remote_code=trust_remote_code, ask_hub=False,
    )  # fmt: skip
    try:
        source = opened or again()
        if labels is not None and placeholders(source.labels):
            source = again(labels=labels)
        if source.digest != record.get("digest"):
            logger.warning("source %s (%s) has changed since the merge: left out", name, record["origin"])
            return None
        return scored(source)
    except PlaitError as error:
        logger.warning("source %s cannot be scored: %s", name, error)
        return None


def language_scores_of(
    merged: Merged,
    data: Mapping[str, Examples],
    *,
    sources: bool = True,
    batch_size: int = 32,
    max_length: int | None = None,
    stride: int | None = None,
    trust_remote_code: bool = False,
    opened: Mapping[str, Checkpoint] | None = None,
) -> Evaluation:
    """Returns perplexity and bits per byte of a merged language model, beside those of its sources.

    Texts named as a task are compared with its sources, others with all of them.
    """
    answer: Any = partial(language_outcome, batch_size=batch_size, max_length=max_length, stride=stride)
    model = merged.task(merged.tasks[0])
    every = [name for name in merged.manifest.sources if name != BASE]
    outcomes = {name: answer(model, merged.tokenizer, examples) for name, examples in data.items()}
    wanted = {
        name: [*merged.about(name).sources] if name in merged.tasks else every for name in (data if sources else ())
    }
    found: dict[str, dict[str, Mapping[str, float]]] = {name: {} for name in data}
    for source in dict.fromkeys(name for names in wanted.values() for name in names):
        texts = {name: data[name] for name, names in wanted.items() if source in names}
        for name, scores in source_language(
            merged, source, texts, answer, (opened or {}).get(source), trust_remote_code
        ).items():
            found[name][source] = scores
    scored = {
        name: TaskScores(outcome.scores(), PRIMARY, len(outcome.nll), found[name], outcome=outcome)
        for name, outcome in outcomes.items()
    }
    return Evaluation(str(merged.folder), scored, merged.artifact)


def source_language(  # noqa: PLR0917 - what scoring a source takes
    merged: Merged,
    name: str,
    texts: Mapping[str, Examples],
    answer: Any,
    opened: Checkpoint | None,
    trust_remote_code: bool,
) -> dict[str, Mapping[str, float]]:
    """Returns a source's scores on texts; none (with a warning) when it is gone or its weights have changed."""
    record = merged.manifest.sources[name]
    try:
        source = opened or open_checkpoint(
            origin_from(merged.folder, record["origin"]), name=name, revision=record.get("revision"),
            trust_remote_code=trust_remote_code, ask_hub=False,
        )  # fmt: skip
        if source.digest != record.get("digest"):
            logger.warning("source %s (%s) has changed since the merge: left out", name, record["origin"])
            return {}
        model, tokenizer = source.model(language=True), source.tokenizer()
        return {task: answer(model, tokenizer, examples).scores() for task, examples in texts.items()}
    except PlaitError as error:
        logger.warning("source %s cannot be scored: %s", name, error)
        return {}
