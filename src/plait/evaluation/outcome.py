"""What a model answered on labelled rows: its scores, an interval around one, a table per class, rows to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.data import Examples, ProblemType
from plait.data.examples import ONE_ANSWER
from plait.data.labels import IGNORED

RESAMPLES = 1000
LEVEL = 0.95
AT_ONCE = 2_000_000
"""Random numbers drawn at once."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Where a score lies in `level` of the resampled data sets."""

    low: float
    high: float
    level: float = LEVEL
    resamples: int = RESAMPLES

    def __str__(self) -> str:
        return f"{self.low:.3f} – {self.high:.3f}"


@dataclass(frozen=True)
class RowSums:
    """What each row adds to a score that is a function of sums over rows.

    Attributes:
        rows: [N, K].
        kind: which function of the sums: their ratio, its exponential, a correlation, or the mean F1 of labels.
        falling: whether less is better, as in perplexity.
    """

    rows: Array
    kind: Literal["ratio", "exp_ratio", "pearson", "macro_f1"]
    falling: bool = False

    def scores(self, sums: Array) -> Array:
        """Returns the scores [R] of sums [R, K]."""
        return SCORES[self.kind](sums)

    @property
    def value(self) -> float:
        """Returns the score of all rows."""
        return float(self.scores(self.rows.sum(0, keepdims=True))[0])


class Answered(Protocol):
    """What is known of each row that was scored."""

    def interval(self, metric: str, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
        """Returns the bootstrap interval of a score."""

    def row_sums(self, metric: str) -> RowSums | None:
        """Returns what each row adds to a score."""

    def per_class(self) -> list[dict[str, Any]]:
        """Returns a row per class, where there are any."""

    def columns(self) -> dict[str, list[Any]]:
        """Returns rows in columns, ready to be written."""


@dataclass(frozen=True)
class Outcome:
    """Answers beside the truth.

    Attributes:
        examples: with labels that are the head's own.
        logits: one tensor per example ([words, C] for tags); None for questions.
        answers: one text per question; None otherwise.
        names: the head's labels.
        problem: what the logits mean.
    """

    examples: Examples
    logits: Sequence[Tensor] | None = None
    answers: Sequence[str] | None = None
    names: tuple[str, ...] | None = None
    problem: ProblemType | None = None

    @property
    def what(self) -> str:
        """Returns what is answered: questions, tags, or the problem type."""
        kind = self.examples.kind
        return kind if kind not in ONE_ANSWER else self.problem or self.examples.problem_type

    def interval(self, metric: str, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
        """Returns the percentile bootstrap interval of a score, over rows drawn with replacement.

        Both scores are sums over rows and a function of them, so a resample is one product of counts and sums. Tags are
        drawn by sentence: the words of one are no independent witnesses.

        Args:
            metric: the task's primary one.
            resamples: how many.
            seed: of the draws.
        """
        if (self.what, metric) == ("regression", "spearman"):
            return self._ranked(resamples, seed)
        return interval_of(self.row_sums(metric), resamples=resamples, seed=seed)

    def _ranked(self, resamples: int, seed: int) -> Interval | None:
        """Returns the interval of Spearman's correlation, whose ranks each resample decides anew."""
        from scipy.stats import rankdata

        x = torch.stack(list(self.logits or ())).double().flatten().numpy()
        y = np.asarray(self.examples.labels, dtype=np.float64).reshape(-1)
        count, draw = len(x), np.random.default_rng(seed)
        chunk, found = max(1, AT_ONCE // max(count, 1)), []
        for start in range(0, resamples if count > 1 else 0, chunk):
            rows = draw.integers(0, count, (min(chunk, resamples - start), count))
            a, b = (rankdata(side[rows], axis=1) - (count + 1) / 2 for side in (x, y))
            products = [(p * q).sum(1) for p, q in ((a, a), (b, b), (a, b))]
            found.append(_pearson(np.stack([np.full(len(rows), float(count)), a.sum(1), b.sum(1), *products], 1)))
        if not found:
            return None
        low, high = np.quantile(np.concatenate(found), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(low), float(high), LEVEL, resamples)

    def row_sums(self, metric: str) -> RowSums | None:
        """Returns what each row adds to a score; None where the score is no function of sums over rows."""
        if (self.what, metric) == ("question_answering", "f1"):
            from plait.evaluation.metrics import overlaps

            rows = np.asarray(overlaps(self.answers or (), self.examples.labels or ()))
            return RowSums(np.stack([rows, np.ones_like(rows)], 1), "ratio")
        if (self.what, metric) == ("regression", "pearson"):
            x = torch.stack(list(self.logits or ())).double().flatten().numpy()
            y = np.asarray(self.examples.labels, dtype=np.float64).reshape(-1)
            return products(x, y)
        if (self.what, metric) == ("multi_label_classification", "macro_f1"):
            guess, truth = self._yes()
            return RowSums(np.concatenate([guess & truth, guess, truth], 1).astype(np.float64), "macro_f1")
        if metric != "accuracy" or self.what == "multi_label_classification":
            return None
        right = [(float((g == t).sum()), float(len(t))) for g, t in self._classes()]
        return RowSums(np.asarray(right, dtype=np.float64).reshape(-1, 2), "ratio")

    def _yes(self) -> tuple[Any, Any]:
        """Returns which labels are answered and which are true, [N, C]."""
        return (
            torch.stack(list(self.logits or ())).numpy() > 0,
            np.asarray(self.examples.labels, dtype=np.float64) > 0.5,
        )

    def _classes(self) -> Iterator[tuple[Any, Any]]:
        """Yields per example the answered and the true classes: one of each, or those of its scored words."""
        for row, label in zip(self.logits or (), self.examples.labels or (), strict=True):
            if self.what != "token_classification":
                yield np.asarray([int(row.argmax(-1))]), np.asarray([int(label)])
                continue
            truth = np.asarray(label)
            counts = (truth != IGNORED) & ~row.isneginf().all(-1).numpy()
            yield row.argmax(-1).numpy()[counts], truth[counts]

    def per_class(self) -> list[dict[str, Any]]:
        """Returns precision, recall, F1 and the number of true examples (words of tags) of each label.

        Nothing for numbers and answers, which have no classes.
        """
        from sklearn.metrics import precision_recall_fscore_support

        if self.what in ("regression", "question_answering"):
            return []
        if self.what == "multi_label_classification":
            guess, truth = self._yes()
            width = truth.shape[1]
        else:
            pairs = list(self._classes())
            guess, truth = (np.concatenate(side) for side in zip(*pairs, strict=True))
            width = int((self.logits or ())[0].shape[-1])
        table = precision_recall_fscore_support(truth, guess, labels=list(range(width)), zero_division=0.0)
        return [
            {"label": self.name(at), "precision": float(p), "recall": float(r), "f1": float(f), "examples": int(n)}
            for at, (p, r, f, n) in enumerate(zip(*table, strict=True))
        ]

    def name(self, at: int) -> str:
        """Returns a label's name, or its number where it has none."""
        return self.names[at] if self.names and 0 <= at < len(self.names) else str(at)

    def columns(self) -> dict[str, list[Any]]:
        """Returns texts, truth and answers in columns, ready to be written."""
        texts = [list(text) if isinstance(text, tuple) else str(text) for text in self.examples.texts]
        table: dict[str, list[Any]] = {"row": list(range(len(texts))), "text": texts}
        if self.examples.pairs is not None:
            table["text_pair"] = list(self.examples.pairs)
        return {**table, **self._answered()}

    def _answered(self) -> dict[str, list[Any]]:
        labels, rows = self.examples.labels or (), [row.float() for row in self.logits or ()]
        if self.what == "question_answering":
            truth = [[text for text, _ in options] for options in labels]
            return {"label": truth, "prediction": list(self.answers or ())}
        if self.what == "regression":
            wanted, said = ([float(np.ravel(v)[0]) for v in side] for side in (labels, rows))
            return {"label": wanted, "prediction": said}
        if self.what == "multi_label_classification":
            guess, truth = self._yes()
            return {"label": list(map(self._named, truth)), "prediction": list(map(self._named, guess))}
        if self.what == "token_classification":
            truth = [[None if tag == IGNORED else self.name(int(tag)) for tag in row] for row in labels]
            tables = [torch.where(row.isneginf().all(-1), IGNORED, row.argmax(-1)).tolist() for row in rows]
            guess = [[None if tag == IGNORED else self.name(tag) for tag in row] for row in tables]
            return {"label": truth, "prediction": guess}
        chances = [row.softmax(-1) for row in rows]
        return {
            "label": [self.name(int(label)) for label in labels],
            "prediction": [self.name(int(row.argmax(-1))) for row in chances],
            "score": [round(float(row.max()), 6) for row in chances],
        }

    def _named(self, flags: Any) -> list[str]:
        return [self.name(at) for at in np.flatnonzero(flags).tolist()]


def products(x: Array, y: Array) -> RowSums:
    """Returns what rows add to the correlation of two columns [N]."""
    x, y = x - x.mean(), y - y.mean()  # else the squares of large numbers leave nothing of small differences
    return RowSums(np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1), "pearson")


def resampled(several: Sequence[RowSums], *, resamples: int = RESAMPLES, seed: int | Sequence[int] = 0) -> list[Array]:
    """Returns the scores [R] of each of several answers to the same rows, in the same bootstrap samples.

    Which rows are drawn depends on their number and the seed alone: calls with one seed can be paired.

    Raises:
        ValueError: answers to different numbers of rows.
    """
    counts = {len(sums.rows) for sums in several}
    if len(counts) != 1:
        raise ValueError(f"answers to {sorted(counts)} rows; expected all to the same rows")
    count, draw = counts.pop(), np.random.default_rng(seed)
    chunk = max(1, AT_ONCE // count)
    tables: list[list[Array]] = [[] for _ in several]
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = draw.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        for scores, sums in zip(tables, several, strict=True):
            scores.append(sums.scores(drawn @ sums.rows))
    return [np.concatenate(scores) for scores in tables]


def interval_of(sums: RowSums | None, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """Returns the percentile bootstrap interval of a score; None for fewer than two rows."""
    if sums is None or len(sums.rows) < 2 or resamples < 1:
        return None
    (scores,) = resampled([sums], resamples=resamples, seed=seed)
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), LEVEL, resamples)


def _ratio(sums: Array) -> Array:
    ratios: Array = np.where(sums[:, 1] > 0, sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], 1.0), 0.0)
    return ratios


def _pearson(sums: Array) -> Array:
    n, x, y, xx, yy, xy = sums.T
    spread = (n * xx - x * x) * (n * yy - y * y)
    safe = np.where(spread > 0, spread, 1.0)
    correlations: Array = np.where(spread > 0, (n * xy - x * y) / np.sqrt(safe), 0.0)
    return correlations


def _macro_f1(sums: Array) -> Array:
    hit, guessed, true = np.split(sums, 3, axis=1)
    total = guessed + true
    scores: Array = np.where(total > 0, 2 * hit / np.where(total > 0, total, 1.0), 0.0).mean(1)
    return scores


def _exp_ratio(sums: Array) -> Array:
    found: Array = np.exp(np.minimum(_ratio(sums), 700.0))
    return found


SCORES: dict[str, Callable[[Array], Array]] = {
    "ratio": _ratio, "exp_ratio": _exp_ratio, "pearson": _pearson, "macro_f1": _macro_f1,
}  # fmt: skip
