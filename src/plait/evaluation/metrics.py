"""What a model's outputs are worth: scikit-learn and scipy compute what they can."""

from __future__ import annotations

import re
import string
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    overlap = [
        max(_overlap(guess, text) for text in texts) for guess, texts in zip(guesses, references, strict=True)
    ]
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


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
