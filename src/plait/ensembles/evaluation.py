"""Scores of an ensemble: members alone and together, how they differ, and how well they know their limits."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plait.data import Examples, Kind, ProblemType, align_labels
from plait.data.labels import IGNORED
from plait.ensembles.answers import Logits, as_logits, member_answers, saved_logits
from plait.ensembles.divergences import means
from plait.ensembles.diversity import diversity, mean_logits, mean_probabilities, mutual_information
from plait.ensembles.saved import SavedEnsemble
from plait.errors import DataError
from plait.evaluation import primary_metric, score
from plait.evaluation.metrics import Curve, out_of_scope, risk_coverage, uncertainty, yes_or_no
from plait.evaluation.outcome import Outcome
from plait.evaluation.scores import TaskScores
from plait.training.heads import check_labelled

TOGETHER = "all members, mean probabilities"
COVERAGES = (50, 80, 90)
"""Per cent of the examples, the surest, at which the risk is said."""


def saved_scores(
    saved: SavedEnsemble,
    examples: Examples,
    strange: Examples | None = None,
    *,
    members: bool = True,
    batch_size: int = 32,
    max_length: int | None = None,
) -> TaskScores:
    """Returns the scores of a saved ensemble on labelled examples.

    Args:
        saved: the ensemble.
        examples: with labels.
        strange: texts that belong to no class.
        members: whether each member is scored alone too.
        batch_size: texts at a time.
        max_length: tokens a text is cut at; as in its training by default.

    Raises:
        DataError: no labels, or labels that the heads do not have; or nothing that `strange` can be told apart by.
        SourceError: a damaged ensemble.
    """
    check_labelled(examples, "evaluate")
    if strange is not None:
        check_out_of_scope(saved, strange)
    kind: Any = saved.kind
    aligned = align_labels(examples, saved.labels, kind=kind, problem_type=saved.problem)
    ask: Any = partial(saved_logits, saved, batch_size=batch_size, max_length=max_length)
    logits = ask(aligned)
    task_scores = scores(logits, aligned, kind, saved.problem)
    together = [row.mean(0) for row in logits]
    outcome = Outcome(aligned, together, names=saved.labels, problem=saved.problem)
    doubted = {} if strange is None else out_of_scope_scores(logits, ask(strange.unlabelled()))
    if saved.plain:
        settings: Any = {"batch_size": batch_size, "max_length": max_length}
        taught = teacher_scores(saved, aligned, **settings) if members else {}
        return TaskScores(
            {**task_scores.sources["member 0"], **doubted}, task_scores.primary, task_scores.examples, taught,
            selective(*labelled_rows(logits, aligned), saved.problem).points(), outcome,
        )  # fmt: skip
    return replace(
        task_scores,
        metrics={**task_scores.metrics, **doubted},
        sources=task_scores.sources if members else {},
        curve=selective(*labelled_rows(logits, aligned), saved.problem).points(),
        outcome=outcome,
    )


def teacher_scores(
    saved: SavedEnsemble, examples: Examples, *, batch_size: int, max_length: int | None
) -> dict[str, dict[str, float]]:
    """Returns the scores of the members that taught a model, where they were kept, and of their mean probabilities."""
    tables = member_answers(
        saved.folder, examples, saved.labels, batch_size=batch_size, max_length=max_length
    )
    if len(tables) > 1:
        tables[TOGETHER] = as_logits(torch.stack(list(tables.values())), saved.problem)
    return {name: scored(list(rows), examples, saved.problem) for name, rows in tables.items()}


def scores(logits: Logits, examples: Examples, kind: Kind, problem: ProblemType) -> TaskScores:
    """Returns the scores of members together and alone, and how they differ; labels are the head's already."""
    together = scored([row.mean(0) for row in logits], examples, problem)
    members = {
        f"member {m}": scored([row[m] for row in logits], examples, problem) for m in range(len(logits[0]))
    }
    table, labels = labelled_rows(logits, examples)
    together |= mixture(table, labels, problem)
    together |= diversity(table, None if problem == "regression" else labels, problem)
    return TaskScores(together, primary_metric(kind, problem), len(examples), members)


def scored(logits: Logits, examples: Examples, problem: ProblemType) -> dict[str, float]:
    """Returns the task's metrics of one answer per example, and how far its probabilities can be trusted."""
    metrics = score(logits, examples, problem)
    if problem == "regression":
        return metrics
    table, labels = labelled_rows([row.unsqueeze(0) for row in logits], examples)
    return {**metrics, **uncertainty_scores(means(table[0].double(), problem), labels, problem)}


def uncertainty_scores(probabilities: Tensor, labels: Tensor, problem: ProblemType) -> dict[str, float]:
    """Returns NLL, Brier score, calibration error, and what answering the surest examples alone would risk."""
    table, truth = answered(probabilities, labels, problem)
    curve = risk_coverage(table.max(-1), table.argmax(-1) != truth)
    risks = {f"risk_at_{at}": float(curve.risk[math.ceil(at / 100 * len(truth)) - 1]) for at in COVERAGES}
    return {**uncertainty(table, truth), **risks}


def answered(probabilities: Tensor, labels: Tensor, problem: ProblemType) -> tuple[Any, Any]:
    """Returns arrays of class probabilities and classes; several labels are as many questions."""
    arrays = probabilities.numpy(), labels.numpy()
    return yes_or_no(*arrays) if problem == "multi_label_classification" else arrays


def selective(table: Tensor, labels: Tensor, problem: ProblemType) -> Curve:
    """Returns the risk of the mean logits at each coverage; for a regression its squared error.

    The members of a regression are sure of a number where they agree on it.
    """
    if problem == "regression":
        z = table.double().flatten(1)
        return risk_coverage(-z.var(0, correction=0).numpy(), (z.mean(0) - labels).square().numpy())
    chances, truth = answered(means(table.double().mean(0), problem), labels, problem)
    return risk_coverage(chances.max(-1), chances.argmax(-1) != truth)


def mixture(table: Tensor, labels: Tensor, problem: ProblemType) -> dict[str, float]:
    """Returns NLL and calibration error of the members' mean probabilities, in place of their mean logits."""
    if problem == "regression":
        return {}
    chances = mean_probabilities(table, problem)
    every = uncertainty_scores(chances, labels, problem)
    metrics = {f"mean_probability_{name}": every[name] for name in ("nll", "calibration_error")}
    if problem == "single_label_classification":
        metrics["mean_probability_accuracy"] = float((chances.argmax(-1) == labels).double().mean())
    return metrics


def labelled_rows(logits: Logits, examples: Examples) -> tuple[Tensor, Tensor]:
    """Returns logits [M, N, C] and labels of the examples, or of the labelled words within the length limit."""
    labels = examples.labels or ()
    if examples.kind != "token_classification":
        return torch.stack(list(logits), 1), torch.tensor(
            [list(v) if isinstance(v, tuple) else v for v in labels]
        )
    table = torch.cat(list(logits), 1)
    tags = torch.tensor([tag for row in labels for tag in row])
    counts = (tags != IGNORED) & ~table[0].isneginf().all(-1)
    return table[:, counts], tags[counts]


def check_out_of_scope(saved: SavedEnsemble, strange: Examples) -> None:
    """Raises `DataError` where labels do not exclude each other, or something else than texts has none."""
    plain = "sequence_classification"
    if saved.problem != "single_label_classification" or saved.kind != plain:
        raise DataError("--out-of-scope needs a classifier of texts with one label each")
    if strange.kind != plain:
        raise DataError(f"{strange.source}: is data for {strange.kind}; --out-of-scope expects texts")


def out_of_scope_scores(inside: Logits, outside: Logits) -> dict[str, float]:
    """Returns how well doubt tells texts that belong to no class from those that do."""
    table = torch.stack([*inside, *outside], 1)
    flags = [False] * len(inside) + [True] * len(outside)
    metrics = out_of_scope(mean_logits(table).softmax(-1), flags, mutual_information(table))
    return {**metrics, "out_of_scope_texts": float(len(outside))}
