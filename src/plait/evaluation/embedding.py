"""Embeddings of texts, and how well their cosines rank the pairs that people have scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from plait import progress
from plait.checkpoints.answering import check_answers
from plait.checkpoints.tokenizers import reading_up_to
from plait.data import Encoded, Examples, align_labels, encode, length_limit, plan
from plait.encoders.embedding import Embedder, Reading
from plait.encoders.modes import accelerated, evaluating
from plait.errors import DataError
from plait.evaluation import metrics
from plait.evaluation.outcome import Outcome

PRIMARY = "spearman"


def encoded_texts(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    config: Any,
    *,
    max_length: int | None = None,
) -> Encoded:
    """Returns texts tokenised as an embedding model reads them: with its prompt, up to its own length."""
    longest = max_length if max_length is not None else reading.max_length
    with reading_up_to(tokenizer, longest):
        limit = length_limit(tokenizer, config, longest)
        return encode(Examples(reading.of(tuple(texts))), tokenizer, max_length=limit, config=config, labels=False)


def embeddings(
    model: Embedder,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int | None = None,
) -> Tensor:
    """Returns one embedding per text, [n, d] in float32; equal texts are computed once."""
    different = list(dict.fromkeys(texts))
    encoded = encoded_texts(different, tokenizer, model.reading, model.config, max_length=max_length)
    rows: list[Tensor] = [torch.empty(0)] * len(different)
    with accelerated(model) as device, evaluating(model), progress.task("embedding", len(encoded)) as tick:
        for places in plan(encoded, batch_size):
            inputs = encoded.collate([encoded.features[place] for place in places])
            found = model.embed({name: tensor.to(device) for name, tensor in inputs.items()}).float().cpu()
            check_answers(model, {"embeddings": found})
            for place, row in zip(places, found, strict=True):
                rows[place] = row
            tick(len(places))
    where = {text: place for place, text in enumerate(different)}
    return torch.stack([rows[where[text]] for text in texts])


def scored_pairs(examples: Examples, name: str = "the model") -> Examples:
    """Returns examples that an embedding model can be scored on: pairs of texts with a number each.

    Raises:
        DataError: there is no second text, or no number.
    """
    if examples.pairs is None:
        raise DataError(
            f"{examples.source}: single texts; {name} is a body without a head, its embeddings are scored on pairs: "
            "expected columns such as sentence1, sentence2 and score (text, --text-column; text_pair, "
            "--text-pair-column; label, --label-column)"
        )
    if examples.labels is None:
        raise DataError(examples.lacks_labels("expected a score of each pair to compare cosines with"))
    return align_labels(examples, None, kind="sequence_classification", problem_type="regression")


def similarity(
    model: Embedder,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
) -> Outcome:
    """Returns the cosine of each pair's embeddings beside its score.

    Raises:
        DataError: examples without pairs or scores.
    """
    pairs = scored_pairs(examples)
    count = len(pairs)
    told: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
    found = embeddings(model, tokenizer, [*pairs.texts, *(pairs.pairs or ())], **told)
    cosines = F.cosine_similarity(found[:count].double(), found[count:].double())
    return Outcome(pairs, list(cosines.unsqueeze(1)), problem="regression")


def similarity_scores(outcome: Outcome) -> dict[str, float]:
    """Returns Spearman's and Pearson's correlation of cosines with scores."""
    found = metrics.regression(torch.stack(list(outcome.logits or ())).numpy(), outcome.examples.labels or ())
    return {name: found[name] for name in (PRIMARY, "pearson")}
