"""Logits in order, metrics, and the scores of a model on labelled examples."""

from plait.encoders.heads import head_kind, head_labels, head_problem
from plait.evaluation.evaluate import evaluate_model, outcome_of, outcome_scores, primary_metric, score
from plait.evaluation.predict import predict_encoded, predict_logits

__all__ = [
    "evaluate_model",
    "head_kind",
    "head_labels",
    "head_problem",
    "outcome_of",
    "outcome_scores",
    "predict_encoded",
    "predict_logits",
    "primary_metric",
    "score",
]
