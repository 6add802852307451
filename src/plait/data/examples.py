"""A data set once it has been read: texts, perhaps pairs and labels, and their fingerprint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash
from numpy.typing import NDArray

from plait.errors import DataError

Kind = Literal["sequence_classification", "token_classification", "question_answering", "image_classification"]
ONE_ANSWER = frozenset({"sequence_classification", "image_classification"})
"""Kinds with one row of logits for a whole input."""
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclass(frozen=True)
class Examples:
    """Texts in order with what is known of them.

    Attributes:
        texts: One text per example; a tuple of words for token classification; the question for answers; a picture for
            image classification.
        pairs: The second text of each example (the context of a question), or None.
        labels: One per example, or None: a class's name or index, a number for regression, a tuple of several
            labels, one label per word, or a tuple of (answer, first character); None for an example without one.
        label_names: The names that label indices stand for, where the data says so.
        kind: What the data can train: sequence classification, token classification or question answering.
        source: Where it was read from, for messages.
        columns: The names of all columns there, for messages.
    """

    texts: tuple[Any, ...]
    pairs: tuple[str, ...] | None = None
    labels: tuple[Any, ...] | None = None
    label_names: tuple[str, ...] | None = None
    kind: Kind = "sequence_classification"
    source: str = "data"
    columns: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def fingerprint(self) -> str:
        """Returns 32 hex digits that change whenever a text, pair, label or label name does."""
        digest = xxhash.xxh3_128()
        for column in (self.texts, self.pairs or (), self.labels or (), self.label_names or ()):
            for value in column:
                digest.update(repr(value).encode())
                digest.update(b"\0")
            digest.update(b"\1")
        return digest.hexdigest()

    @property
    def problem_type(self) -> ProblemType:
        """Returns what the labels look like: several classes, a number (one at least has a fraction), or one class."""
        labels = self.labels or ()
        if self.kind in ONE_ANSWER and any(isinstance(label, tuple) for label in labels):
            return "multi_label_classification"
        if any(isinstance(label, float) and not label.is_integer() for label in labels):
            return "regression"
        return "single_label_classification"

    def select(self, rows: Sequence[int]) -> Examples:
        """Returns the examples at `rows`, in that order."""

        def pick(column: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
            return None if column is None else tuple(column[row] for row in rows)

        return replace(
            self,
            texts=tuple(self.texts[row] for row in rows),
            pairs=pick(self.pairs),
            labels=pick(self.labels),
        )

    def sample(self, limit: int | None, seed: int = 0) -> Examples:
        """Returns at most `limit` examples: a random subset fixed by `seed`, in the order of the data."""
        if limit is None or limit >= len(self):
            return self
        rows = np.random.default_rng(seed).permutation(len(self))[: max(limit, 0)]
        return self.select(sorted(rows.tolist()))

    def hashes(self) -> npt.NDArray[np.int64]:
        """Returns the xxh3-128 of each text and its pair as two integers, [n, 2].

        Raises:
            DataError: a text holds half a character.
        """
        whole = (f"{a}\0{b}" for a, b in zip(self.texts, self.pairs, strict=True)) if self.pairs else self.texts
        try:
            digests = b"".join(xxhash.xxh3_128_digest(text.encode()) for text in whole)
        except UnicodeEncodeError as error:
            raise DataError(f"{self.source}: a text holds half a character ({error}); mend the file") from None
        return np.frombuffer(bytearray(digests), dtype="<i8").reshape(-1, 2)

    def lacks_labels(self, wanted: str) -> str:
        """Returns the message for examples without labels: what was found, and how to name a column.

        Args:
            wanted: what the labels are for, or what else may be done.
        """
        seen = f"; found columns {', '.join(self.columns)}" if self.columns else ""
        return f"{self.source}: has no labels; {wanted}{seen}{'; name one (label, --label-column)' if seen else ''}"

    def unlabelled(self) -> Examples:
        """Returns the same texts without labels."""
        return replace(self, labels=None, label_names=None)


def held_back(count: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the rows to train on and those held back to judge on, in order; none are held back for a share of 0."""
    held = 0 if share == 0 or count < 2 else min(max(1, round(share * count)), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])
