"""Metrics of tasks, calibration, selective prediction and out-of-scope detection, by scikit-learn and scipy."""

from __future__ import annotations

import re
import string
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plait.errors import DataError

BINS = 15


def classification(logits: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Returns accuracy, macro F1, Matthews correlation and calibration error of logits [N, C]."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    guesses = scores.argmax(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one class alone correlates 0
        matthews = float(matthews_corrcoef(truth, guesses))
    return {
        "accuracy": float(accuracy_score(truth, guesses)),
        "macro_f1": float(f1_score(truth, guesses, average="macro", zero_division=0.0)),
        "matthews": matthews,
        "calibration_error": calibration_error(_softmax(scores), truth),
    }


def regression(predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Returns Pearson and Spearman correlation and the mean squared error; a constant correlates 0."""
    from scipy.stats import pearsonr, spearmanr

    guesses = np.asarray(predictions, dtype=np.float64).reshape(-1)
    truth = np.asarray(labels, dtype=np.float64).reshape(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant input is answered below
        pearson, spearman = (
            float(correlate(guesses, truth)[0]) if len(truth) > 1 else 0.0
            for correlate in (pearsonr, spearmanr)
        )
    return {
        "pearson": float(np.nan_to_num(pearson)),
        "spearman": float(np.nan_to_num(spearman)),
        "mse": float(np.mean((guesses - truth) ** 2)),
    }


def multi_label(logits: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Returns subset accuracy, macro and micro F1 of yes/no logits [N, C] at probability one half."""
    from sklearn.metrics import accuracy_score, f1_score

    guesses, truth = np.asarray(logits) > 0, np.asarray(labels) > 0.5
    return {
        "accuracy": float(accuracy_score(truth, guesses)),
        "macro_f1": float(f1_score(truth, guesses, average="macro", zero_division=0.0)),
        "micro_f1": float(f1_score(truth, guesses, average="micro", zero_division=0.0)),
    }


def questions(guesses: Sequence[str], answers: Sequence[Sequence[tuple[str, int]]]) -> dict[str, float]:
    """Returns exact match and token F1 against the best of each question's answers."""
    references = [[text for text, _ in options] or [""] for options in answers]
    exact = [
        max(_normal(guess) == _normal(text) for text in texts)
        for guess, texts in zip(guesses, references, strict=True)
    ]
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlaps(guesses, answers)))}


def overlaps(guesses: Sequence[str], answers: Sequence[Sequence[tuple[str, int]]]) -> list[float]:
    """Returns each question's token F1 against the best of its answers."""
    references = [[text for text, _ in options] or [""] for options in answers]
    return [
        max(_overlap(guess, text) for text in texts) for guess, texts in zip(guesses, references, strict=True)
    ]


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> float:
    """Returns the expected calibration error of class probabilities [N, C].

    ECE = Σ_m |B_m| / N · |acc(B_m) − conf(B_m)| over equal-width bins of the highest probability
    (Guo et al. 2017, eq. 3).
    """
    table = np.asarray(probabilities, dtype=np.float64)
    confidence, right = table.max(-1), (table.argmax(-1) == np.asarray(labels)).astype(np.float64)
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def _normal(text: str) -> str:
    """Returns an answer without case, punctuation and articles, as SQuAD compares them."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _overlap(guess: str, answer: str) -> float:
    left, right = _normal(guess).split(), _normal(answer).split()
    common = sum((Counter(left) & Counter(right)).values())
    if not left or not right:
        return float(left == right)
    return 2 * common / (len(left) + len(right))


Array = NDArray[Any]
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Curve:
    """The risk among the most confident examples, for every share of them that is answered.

    Attributes:
        coverage: k/N for k = 1 … N.
        risk: The mean loss of the k most confident examples.
    """

    coverage: Array
    risk: Array

    @property
    def area(self) -> float:
        """AURC: the mean risk over all coverages (Geifman & El-Yaniv 2017, arXiv:1705.08500)."""
        return float(self.risk.mean())

    def points(self, count: int = 100) -> dict[str, list[float]]:
        """Returns coverage and risk of the surest 1/count, 2/count, … of the examples, each once."""
        places = np.unique(np.ceil(np.arange(1, count + 1) * len(self.risk) / count).astype(int) - 1)
        return {"coverage": self.coverage[places].tolist(), "risk": self.risk[places].tolist()}


def uncertainty(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Returns NLL, Brier score, calibration error, and the area under the risk-coverage curve, all and in excess.

    Selective prediction answers the examples with the highest top probability; its loss is 0 or 1. The excess is what
    lies above an order that puts all errors last.

    Raises:
        DataError: When there is no example, or labels are not one class of C for each.
    """
    table, truth = _labelled(probabilities, labels)
    wrong = (table.argmax(-1) != truth).astype(np.float64)
    area = risk_coverage(table.max(-1), wrong).area
    return {
        "nll": nll(table, truth),
        "brier": brier(table, truth),
        "calibration_error": calibration_error(table, truth),
        "aurc": area,
        "excess_aurc": area - risk_coverage(-wrong, wrong).area,
    }


def yes_or_no(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Returns several labels [N, C] as N·C questions: probabilities of no and yes, and the answers 0 or 1.

    With that, `uncertainty(*yes_or_no(p, y))` scores a model of several labels.

    Raises:
        DataError: When there is not one label for each probability.
    """
    table, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if table.shape != truth.shape:
        raise DataError(f"probabilities {table.shape} and labels {truth.shape}; expected one shape for both")
    yes = table.reshape(-1)
    return np.stack([1 - yes, yes], axis=1), (truth.reshape(-1) > 0.5).astype(int)


def nll(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Returns −(1/N) Σ_i log p_i(y_i); a probability of 0 counts as the least float64."""
    table, truth = _labelled(probabilities, labels)
    return float(-np.log(np.maximum(table[np.arange(len(truth)), truth], TINY)).mean())


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Returns (1/N) Σ_i Σ_c (p_ic − [c = y_i])², between 0 and 2 (Brier 1950)."""
    table, truth = _labelled(probabilities, labels)
    return float(((table - np.eye(table.shape[1])[truth]) ** 2).sum(-1).mean())


def risk_coverage(confidence: ArrayLike, losses: ArrayLike) -> Curve:
    """Returns the risk-coverage curve of examples answered in order of confidence.

    Where examples are equally confident, the risk is the expected one over their orders, so that the order of the data
    does not matter.

    Args:
        confidence: one number per example, such as its top probability or a negative variance.
        losses: one number per example: 0 or 1 for classes, a squared error for numbers.

    Raises:
        DataError: When there is no example, the lengths differ, or a confidence is NaN.
    """
    sure, cost = np.asarray(confidence, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if not sure.size or sure.shape != cost.shape or sure.ndim != 1 or np.isnan(sure).any():
        raise DataError(
            f"confidences {sure.shape} and losses {cost.shape}; expected one number each per example, none of them NaN"
        )
    _, group, sizes = np.unique(-sure, return_inverse=True, return_counts=True)
    typical = np.bincount(group, cost) / sizes
    answered = np.arange(1, len(sure) + 1)
    return Curve(answered / len(sure), np.repeat(typical, sizes).cumsum() / answered)


def entropy(probabilities: ArrayLike) -> Array:
    """Returns −Σ_c p_c log p_c per row, in nats."""
    from scipy.special import entr

    return np.asarray(entr(np.asarray(probabilities, dtype=np.float64)).sum(-1))


def out_of_scope(
    probabilities: ArrayLike, outside: ArrayLike, information: ArrayLike | None = None
) -> dict[str, float]:
    """Returns how well scores tell the examples that belong to no class: AUROC and AUPR (average precision) of each.

    The scores are 1 − max_c p_c (Hendrycks & Gimpel 2017, arXiv:1610.02136), the entropy of p, and where there are
    members the mutual information between them; out of scope is the positive class. AUPR depends on how many of the
    examples are.

    Args:
        probabilities: of all examples, in scope and not.
        outside: True where an example is out of scope.
        information: the mutual information of each example, where it is known.

    Raises:
        DataError: When all or none of the examples are out of scope, or there is not one flag per example.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    table, strange = np.asarray(probabilities, dtype=np.float64), np.asarray(outside).astype(bool)
    if strange.shape != table.shape[:1] or strange.all() or not strange.any():
        raise DataError(
            f"{int(strange.sum())} of {len(strange)} flags are out of scope, for {len(table)} examples; "
            "expected some in scope and some out of it"
        )
    scores = {"max_probability": -table.max(-1), "entropy": entropy(table)}
    if information is not None:
        scores["mutual_information"] = np.asarray(information, dtype=np.float64)
    found = {f"auroc_{name}": float(roc_auc_score(strange, score)) for name, score in scores.items()}
    return found | {
        f"aupr_{k}": float(average_precision_score(strange, score)) for k, score in scores.items()
    }


def _labelled(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    table, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if table.ndim != 2 or not len(table) or truth.shape != table.shape[:1]:
        raise DataError(f"probabilities {table.shape} and labels {truth.shape}; expected [N, C] and [N]")
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= table.shape[1]:
        raise DataError(f"labels are not all whole numbers from 0 to {table.shape[1] - 1}")
    return table, truth
