"""Perplexity and bits per byte: what a language model makes of documents, those longer than its context in windows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plait import progress
from plait.boundary import reading
from plait.checkpoints.answering import answering, named
from plait.data import Examples
from plait.data.labels import IGNORED
from plait.data.language import LOGITS, encode_language, language_batches, of_language
from plait.encoders.heads import language_kind
from plait.encoders.modes import accelerated, evaluating
from plait.errors import DataError, RecipeError, SourceError
from plait.evaluation.outcome import RESAMPLES, Interval, RowSums, interval_of

PRIMARY, BITS = "perplexity", "bits_per_byte"
WINDOW = 2048
"""Tokens that are read together at most, unless more are asked for."""


@dataclass(frozen=True)
class LanguageOutcome:
    """What a model makes of documents: per document its negative log-likelihood in nats, scored tokens and bytes."""

    examples: Examples
    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    sizes: tuple[int, ...]

    def scores(self) -> dict[str, float]:
        """Returns perplexity per token, bits per byte, and how many tokens, bytes and documents they are of.

        perplexity = exp(Σ nll / Σ tokens), bits per byte = Σ nll / (ln 2 · Σ bytes), over all documents together.
        """
        measured = {metric: sums.value for metric in (PRIMARY, BITS) if (sums := self.row_sums(metric)) is not None}
        return {**measured, "tokens": sum(self.tokens), "bytes": sum(self.sizes)}

    def row_sums(self, metric: str) -> RowSums | None:
        """Returns what each document adds to a score."""
        if metric == PRIMARY:
            return RowSums(np.asarray([self.nll, self.tokens], dtype=np.float64).T, "exp_ratio", falling=True)
        if metric == BITS:
            bits = np.asarray(self.nll) / math.log(2)
            return RowSums(np.asarray([bits, self.sizes], dtype=np.float64).T, "ratio", falling=True)
        return None

    def interval(self, metric: str, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
        """Returns the percentile bootstrap interval of a score over documents drawn with replacement."""
        return interval_of(self.row_sums(metric), resamples=resamples, seed=seed)

    def per_class(self) -> list[dict[str, Any]]:
        """Returns nothing: documents have no classes."""
        return []

    def columns(self) -> dict[str, list[Any]]:
        """Returns documents and their scores in columns, ready to be written."""
        rows = range(len(self.nll))
        found: dict[str, list[Any]] = {"row": list(rows), "text": list(self.examples.texts)}
        if self.examples.pairs is not None:
            found["target"] = list(self.examples.pairs)
        ratio = [self.nll[i] / self.tokens[i] if self.tokens[i] else None for i in rows]
        return {
            **found,
            "nll": list(self.nll),
            "tokens": list(self.tokens),
            "bytes": list(self.sizes),
            "perplexity": [None if value is None else math.exp(min(value, 700.0)) for value in ratio],
        }


def language_outcome(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    stride: int | None = None,
) -> LanguageOutcome:
    """Returns the likelihood of documents, or of targets given texts where the model is of that kind (T5).

    Every token of a document is scored once. The first is predicted from the tokenizer's beginning-of-text token, or
    its end-of-text token where it has no other, as lm-evaluation-harness does; where it has neither, the first token is
    not scored and its bytes do not count. A document longer than the window is read in windows that begin `stride`
    tokens apart; each scores the tokens that no earlier one has.

    Args:
        model: a causal language model, or one of targets given texts.
        tokenizer: its tokenizer; special tokens that it would add are left out.
        examples: documents, or texts with targets (second texts, or labels that are texts).
        batch_size: windows at a time at most; fewer where a large vocabulary would fill the memory.
        max_length: tokens in a window; default the model's context, at most 2048.
        stride: tokens from one window to the next; default half a window.

    Raises:
        DataError: no text, or nothing to score.
        RecipeError: a stride that leaves a token without any before it.
    """
    kind = language_kind(model)
    if kind is None:
        raise SourceError(f"{named(model)}: a {type(model).__name__} gives no likelihood of texts")
    chosen = of_language(examples, kind)
    if kind == "seq2seq":
        return _targets(model, tokenizer, chosen, batch_size, max_length)
    width = window_of(model, tokenizer, max_length)
    step = max(width // 2, 1) if stride is None else stride
    if not 1 <= step < width:
        raise RecipeError(f"stride is {step} (expected 1 to {width - 1}: less than a window of {width} tokens)")
    return _documents(model, tokenizer, chosen, batch_size, width, step)


def window_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """Returns how many tokens are read together."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [positions, tokenizer.model_max_length, WINDOW if max_length is None else max_length]
    width = int(min(limit for limit in limits if limit))
    if width < 2:
        raise RecipeError(f"max_length is {width} (expected 2 or more: a token and one before it)")
    return width


def spans(count: int, width: int, step: int) -> Iterator[tuple[int, int, int]]:
    """Yields windows over `count` tokens: first token, end, and the first that is scored, which has one before it."""
    scored = 1
    for begin in range(0, max(count - 1, 1), step):
        end = min(begin + width, count)
        yield begin, end, scored
        scored = end
        if end == count:
            return


@dataclass(frozen=True)
class _Window:
    document: int
    ids: Sequence[int]
    scored: int


def _documents(  # noqa: PLR0917 - what reading documents takes
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    batch_size: int,
    width: int,
    step: int,
) -> LanguageOutcome:
    first = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
    what, advice = "a text cannot be tokenised", "half a character is none: mend the file"
    with reading(examples.source, what, error=DataError, advice=advice):
        table = tokenizer(list(examples.texts), add_special_tokens=False, verbose=False)["input_ids"]
    rows = [list(ids) if first is None else [first, *ids] for ids in table]
    sizes = [len(text.encode()) for text in examples.texts]
    if first is None:
        sizes = [
            size - len(str(tokenizer.decode(ids[:1])).encode()) for size, ids in zip(sizes, rows, strict=True)
        ]
    tokens = [max(len(ids) - 1, 0) for ids in rows]
    if not sum(tokens):
        raise DataError(f"{examples.source}: no token to score; expected texts of two or more tokens")
    windows = [
        _Window(number, ids[begin:end], scored - begin)
        for number, ids in enumerate(rows)
        for begin, end, scored in spans(len(ids), width, step)
        if end > scored
    ]
    nll = [0.0] * len(rows)
    vocabulary = model.config.get_text_config().vocab_size
    with accelerated(model) as device, evaluating(model), progress.task("scoring", len(windows)) as tick:
        for some in _together(windows, batch_size, vocabulary):
            for window, value in zip(some, _read(model, some, device), strict=True):
                nll[window.document] += value
            tick(len(some))
    return LanguageOutcome(examples, tuple(nll), tuple(tokens), tuple(sizes))


def _together(windows: Sequence[_Window], batch_size: int, vocabulary: int) -> Iterator[list[_Window]]:
    """Yields windows of similar length, the longest first."""
    order = sorted(windows, key=lambda window: -len(window.ids))
    while order:
        size = max(1, min(batch_size, LOGITS // (len(order[0].ids) * vocabulary)))
        yield order[:size]
        order = order[size:]


def _read(model: PreTrainedModel, windows: Sequence[_Window], device: torch.device) -> list[float]:
    """Returns the negative log-likelihood of what each window scores."""
    longest = max(len(window.ids) for window in windows)
    ids, labels = torch.zeros(2, len(windows), longest, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    labels.fill_(IGNORED)
    for row, window in enumerate(windows):
        found = torch.tensor(window.ids, device=device)
        ids[row, : len(found)], mask[row, : len(found)] = found, 1
        labels[row, window.scored : len(found)] = found[window.scored :]
    with answering(model):
        logits = model(input_ids=ids, attention_mask=mask).logits
    return _losses(model, logits[:, :-1], labels[:, 1:])


def _losses(model: PreTrainedModel, logits: Tensor, labels: Tensor) -> list[float]:
    """Returns per row the summed cross-entropy of its labels."""
    found = [
        float(F.cross_entropy(z[row != IGNORED].float(), row[row != IGNORED], reduction="none").double().sum())
        for z, row in zip(logits, labels, strict=True)
    ]
    if not all(map(math.isfinite, found)):
        raise SourceError(
            f"{named(model)}: its likelihood of some texts is NaN or Inf: its weights are damaged, train or download "
            "it again"
        )
    return found


def _targets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    batch_size: int,
    max_length: int | None,
) -> LanguageOutcome:
    """Returns the likelihood of targets given texts: each token given the true ones before it, the last included."""
    told: dict[str, Any] = {"max_length": WINDOW if max_length is None else max_length, "config": model.config}
    encoded = encode_language(examples, tokenizer, "seq2seq", **told)
    nll, tokens = [0.0] * len(examples), [len(feature["labels"]) for feature in encoded.features]
    vocabulary = model.config.get_text_config().vocab_size
    with accelerated(model) as device, evaluating(model), progress.task("scoring", len(encoded)) as tick:
        for rows, batch in language_batches(encoded, batch_size, vocabulary):
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            with answering(model):
                logits = model(**inputs).logits
            for row, value in zip(rows, _losses(model, logits, inputs["labels"]), strict=True):
                nll[row] = value
            tick(len(rows))
    pairs = examples.pairs or ()
    whole = tokenizer(text_target=list(pairs), verbose=False)["input_ids"]
    sizes = [
        len((pair if len(ids) <= kept else str(tokenizer.decode(ids[:kept], skip_special_tokens=True))).encode())
        for pair, ids, kept in zip(pairs, whole, tokens, strict=True)
    ]
    return LanguageOutcome(examples, tuple(nll), tuple(tokens), tuple(sizes))

