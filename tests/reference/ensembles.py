"""Ensembles once more: float64, one example, pair and class at a time, from the definitions. Slow and on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

Array = Any
Row = Sequence[float]


def softmax(z: Row) -> list[float]:
    top = max(z)
    powers = [math.exp(v - top) for v in z]
    return [v / math.fsum(powers) for v in powers]


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


def kl(p: Row, q: Row) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def kl_of_classes(z: Row, other: Row) -> float:
    return kl(softmax(z), softmax(other))


def kl_of_labels(z: Row, other: Row) -> float:
    """Independent yes-or-no labels: the divergences add up."""
    return math.fsum(
        kl([sigmoid(a), sigmoid(-a)], [sigmoid(b), sigmoid(-b)]) for a, b in zip(z, other, strict=True)
    )


def kl_of_numbers(z: Row, other: Row) -> float:
    """Between Gaussians of variance 1."""
    return math.fsum((a - b) ** 2 / 2 for a, b in zip(z, other, strict=True))


KL: dict[str, Callable[[Row, Row], float]] = {
    "single_label_classification": kl_of_classes,
    "multi_label_classification": kl_of_labels,
    "regression": kl_of_numbers,
}


def mean_row(rows: Sequence[Row]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def examples(logits: Array) -> list[list[list[float]]]:
    """[M, N, C] as a list over examples of lists over members of rows."""
    table = np.asarray(logits, dtype=np.float64)
    return [[table[j, i].tolist() for j in range(table.shape[0])] for i in range(table.shape[1])]


def mean_over_examples(logits: Array, value: Callable[[list[list[float]]], float]) -> float:
    found = [value(rows) for rows in examples(logits)]
    return math.fsum(found) / len(found)


def to_the_mean(logits: Array, problem: str) -> float:
    """(1/M) Σ_j KL(p_j ‖ q) + KL(q ‖ p_j), q the prediction of the mean logits."""
    divergence = KL[problem]

    def one(rows: list[list[float]]) -> float:
        middle = mean_row(rows)
        return math.fsum(divergence(z, middle) + divergence(middle, z) for z in rows) / len(rows)

    return mean_over_examples(logits, one)


def over_pairs(logits: Array, problem: str) -> float:
    divergence = KL[problem]

    def one(rows: list[list[float]]) -> float:
        found = [divergence(a, b) + divergence(b, a) for a, b in combinations(rows, 2)]
        return math.fsum(found) / len(found) if found else 0.0

    return mean_over_examples(logits, one)


def gain(logits: Array, problem: str) -> float:
    divergence = KL[problem]

    def one(rows: list[list[float]]) -> float:
        return math.fsum(divergence(mean_row(rows), z) for z in rows) / len(rows)

    return mean_over_examples(logits, one)


def loss(z: Row, label: Any, problem: str) -> float:
    """−log p(y), for numbers without its constant."""
    if problem == "regression":
        return (z[0] - label) ** 2 / 2
    if problem == "multi_label_classification":
        return -math.fsum(math.log(sigmoid(v if y else -v)) for v, y in zip(z, label, strict=True))
    return -math.log(softmax(z)[label])


def entropy(p: Row) -> float:
    return -math.fsum(v * math.log(v) for v in p if v > 0)


def mutual_information(logits: Array, problem: str) -> float:
    def one(rows: list[list[float]]) -> float:
        if problem == "multi_label_classification":
            parts = [[[sigmoid(v), sigmoid(-v)] for v in column] for column in zip(*rows, strict=True)]
        else:
            parts = [[softmax(z) for z in rows]]
        return math.fsum(
            entropy(mean_row(part)) - math.fsum(entropy(p) for p in part) / len(part) for part in parts
        )

    return mean_over_examples(logits, one)


def disagreement(logits: Array) -> float:
    def one(rows: list[list[float]]) -> float:
        choices = [z.index(max(z)) for z in rows]
        pairs = list(combinations(choices, 2))
        return sum(a != b for a, b in pairs) / len(pairs) if pairs else 0.0

    return mean_over_examples(logits, one)


def oracle(logits: Array, labels: Sequence[int]) -> float:
    found = [
        any(z.index(max(z)) == y for z in rows) for rows, y in zip(examples(logits), labels, strict=True)
    ]
    return sum(found) / len(found)


def true_probability_variance(logits: Array, labels: Sequence[int]) -> float:
    found = []
    for rows, y in zip(examples(logits), labels, strict=True):
        p = [softmax(z)[y] for z in rows]
        middle = math.fsum(p) / len(p)
        found.append(math.fsum((v - middle) ** 2 for v in p) / len(p))
    return math.fsum(found) / len(found)


def rms(values: Array) -> float:
    flat = np.asarray(values, dtype=np.float64).reshape(-1).tolist()
    return math.sqrt(math.fsum(v * v for v in flat) / len(flat))
