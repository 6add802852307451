"""Bootstrap intervals the slow way: each sample's rows are written out and scored by scikit-learn or scipy."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score

Array = NDArray[np.float64]


def accuracy(guess: Array, truth: Array) -> float:
    return float(accuracy_score(truth, guess))


def pearson(guess: Array, truth: Array) -> float:
    return float(pearsonr(guess, truth)[0])


def macro_f1(guess: Array, truth: Array) -> float:
    return float(f1_score(truth, guess, average="macro", zero_division=0.0))


def rows_of(seed: int, task: str, count: int, resamples: int) -> list[NDArray[np.int64]]:
    """Returns the rows in each bootstrap sample: tasks draw independently, models of one task the same rows."""
    draw = np.random.default_rng([seed, zlib.crc32(task.encode())])
    picked = []
    for _ in range(resamples):
        times = draw.multinomial(count, [1 / count] * count)
        picked.append(np.asarray([row for row in range(count) for _ in range(times[row])]))
    return picked


def relative_samples(
    score: Callable[[Array, Array], float],
    candidate: Array,
    source: Array,
    truth: Array,
    picked: Sequence[NDArray[np.int64]],
) -> Array:
    """Returns candidate / source in each sample."""
    return np.asarray(
        [score(candidate[p], truth[p]) / score(source[p], truth[p]) for p in picked], dtype=np.float64
    )


def dominated(rows: Sequence[Sequence[float]]) -> list[bool]:
    """Returns which rows another is nowhere worse and somewhere better than."""
    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [any(beats(other, row) for other in rows) for row in rows]
