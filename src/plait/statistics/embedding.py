"""What the statistics of an embedding model are taken over: pairs with a score, pairs alone, or single texts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plait.data import Examples, align_labels
from plait.encoders.embedding import PAIR, Embedder
from plait.errors import DataError
from plait.evaluation.embedding import encoded_texts

logger = logging.getLogger("plait")


def single_texts(examples: Examples) -> Examples:
    """Returns both texts of each pair as texts of their own: an embedding model never reads them together."""
    unlabelled = examples.unlabelled()
    if examples.pairs is None:
        return unlabelled
    return replace(unlabelled, texts=(*examples.texts, *examples.pairs), pairs=None)


def as_objective(examples: Examples, labels: str) -> tuple[Examples, str]:
    """Returns examples with the cosines that their pairs should have, and over which labels the Fisher is taken.

    Scores beyond 1 are divided by the least whole number that none exceeds; a pair without a score should be alike.
    Single texts have no cosine to another one: theirs is the Fisher of their embedding, over the model's own
    distribution.

    Raises:
        DataError: scores that are no numbers, or below −1.
    """
    if examples.pairs is None:
        if labels == "given":
            logger.info("%s: single texts: the Fisher of the cosine to the model's own embedding", examples.source)
        return examples.unlabelled(), "exact" if labels == "given" else labels
    if labels != "given":
        return examples.unlabelled(), labels
    if examples.labels is None:
        logger.info("%s: pairs without scores: each is taken to be alike (cosine 1)", examples.source)
        return replace(examples, labels=(1.0,) * len(examples)), labels
    scored = align_labels(examples, None, kind="sequence_classification", problem_type="regression")
    return replace(scored, labels=_cosines([float(score) for score in scored.labels or ()], examples.source)), labels


def _cosines(scores: Sequence[float], source: str) -> tuple[float, ...]:
    highest = max(scores, default=0.0)
    if min(scores, default=0.0) < -1 or not all(map(math.isfinite, scores)):
        raise DataError(f"{source}: scores from {min(scores)} to {highest}; expected numbers from 0, or cosines")
    if highest <= 1:
        return tuple(scores)
    most = math.ceil(highest)
    logger.info("%s: scores up to %g are divided by %d, to be compared with cosines", source, highest, most)
    return tuple(score / most for score in scores)


def embedding_batches(
    model: Embedder, tokenizer: Any, examples: Examples, *, batch_size: int, max_length: int | None
) -> Iterator[dict[str, Tensor]]:
    """Yields inputs of an embedding model, longest first; both texts of a pair in one width; labels if there are."""
    encoded = [
        encoded_texts(texts, tokenizer, model.reading, model.config, max_length=max_length)
        for texts in (examples.texts, examples.pairs)
        if texts is not None
    ]
    lengths = [max(one) for one in zip(*(side.lengths for side in encoded), strict=True)]
    order = sorted(range(len(examples)), key=lambda row: -lengths[row])
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        together = encoded[0].collate([side.features[row] for side in encoded for row in rows])
        inputs = {name: value[: len(rows)] for name, value in together.items()}
        if len(encoded) > 1:
            inputs |= {PAIR + name: value[len(rows) :] for name, value in together.items()}
        if examples.labels is not None:
            inputs["labels"] = torch.tensor([float(examples.labels[row]) for row in rows], dtype=torch.float64)
        yield inputs
