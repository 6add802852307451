"""The scores of one model on labelled examples, whatever its head."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plait.checkpoints.tokenizers import reading_up_to
from plait.data import Examples, Kind, ProblemType, align_labels, encode
from plait.data.answers import best_answers
from plait.data.examples import ONE_ANSWER
from plait.data.labels import IGNORED
from plait.encoders.heads import head_kind, head_labels, head_problem
from plait.errors import DataError
from plait.evaluation import metrics
from plait.evaluation.outcome import Outcome
from plait.evaluation.predict import predict_encoded, predict_logits

logger = logging.getLogger(__name__)

PRIMARY = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "macro_f1",
    "regression": "pearson",
    "token_classification": "accuracy",
    "question_answering": "f1",
}


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
) -> dict[str, float]:
    """Returns the scores of a model's head on labelled examples; `primary_metric` says which one leads.

    Words that the length limit cuts off have no part in the scores of tags; a warning says how many. Where some
    questions have no answer, the model may answer none with nothing, as in SQuAD 2.

    Raises:
        DataError: When the examples have no labels or do not fit the head.
    """
    told: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
    return outcome_scores(outcome_of(model, tokenizer, examples, **told))


def outcome_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
) -> Outcome:
    """Returns what a model's head answers on labelled examples.

    Raises:
        DataError: When the examples have no labels or do not fit the head.
    """
    if examples.labels is None:
        raise DataError(examples.lacks_labels("expected a label column to evaluate on"))
    if not len(examples):
        raise DataError(f"{examples.source}: no examples; expected at least one to evaluate on")
    names, problem = head_labels(model), head_problem(model)
    aligned = align_labels(examples, names, kind=head_kind(model), problem_type=problem)
    told: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
    with reading_up_to(tokenizer, max_length):
        if aligned.kind == "question_answering":
            unanswerable = not all(aligned.labels or ())
            answers = predict_answers(model, tokenizer, aligned, unanswerable=unanswerable, **told)
            return Outcome(aligned, answers=answers)
        logits = predict_logits(model, tokenizer, aligned, **told)
    return Outcome(aligned, logits, names=None if names is None else tuple(names), problem=problem)


def outcome_scores(outcome: Outcome) -> dict[str, float]:
    """Returns the scores of answers that are there already."""
    if outcome.answers is not None:
        return metrics.questions(outcome.answers, outcome.examples.labels or ())
    return score(outcome.logits or (), outcome.examples, outcome.problem)


def score(
    logits: Sequence[Tensor], examples: Examples, problem_type: ProblemType | None = None
) -> dict[str, float]:
    """Returns the scores of logits, one tensor per example, against labels that are the head's already."""
    labels = examples.labels or ()
    if examples.kind == "token_classification":
        return _score_tags(logits, examples)
    table = torch.stack(list(logits)).numpy()
    problem = problem_type or examples.problem_type
    if problem == "regression":
        return metrics.regression(table, labels)
    if problem == "multi_label_classification":
        return metrics.multi_label(table, labels)
    return metrics.classification(table, labels)


def _score_tags(logits: Sequence[Tensor], examples: Examples) -> dict[str, float]:
    rows, tags = torch.cat(list(logits)), np.concatenate([np.asarray(row) for row in examples.labels or ()])
    labelled, lost = tags != IGNORED, rows.isneginf().all(-1).numpy()
    if missing := int((labelled & lost).sum()):
        logger.warning(
            "%s: %d of %d labelled words have no token within the length limit and are not scored",
            *(examples.source, missing, labelled.sum()),
        )
    scored = labelled & ~lost
    if not scored.any():
        raise DataError(f"{examples.source}: no labelled word to score within the length limit")
    return metrics.classification(rows.numpy()[scored], tags[scored])


def primary_metric(kind: Kind, problem_type: ProblemType | None = None) -> str:
    """Returns the name of the score that stands for a task in a table."""
    if kind in ONE_ANSWER:
        return PRIMARY[problem_type or "single_label_classification"]
    return PRIMARY[kind]


def predict_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    unanswerable: bool = False,
) -> list[str]:
    """Returns the best answer span of each context over all its windows.

    If questions may be `unanswerable`, the answer is empty where no span beats its window's score of no answer.
    """
    encoded = encode(examples, tokenizer, max_length=max_length, config=model.config, labels=False)
    outputs = predict_encoded(model, encoded, batch_size=batch_size)
    return [answer.text for answer in best_answers(examples, encoded, outputs, unanswerable=unanswerable)]
