"""Examples to tensors: tokenised once, sorted by length so that little is padded, the order kept beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from plait.data.examples import Examples, ProblemType
from plait.data.labels import IGNORED

LONGEST = 512
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "mpnet", "camembert"}
STRIDE = 128


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples, not padded.

    Attributes:
        features: Per feature its model inputs as lists, and its labels where wanted.
        rows: Per feature the example it came from (a long context becomes several features).
        offsets: For question answering, per feature and token the characters of the context, None elsewhere.
        words: For token classification, per feature and token the word it begins, None elsewhere.
        padding: Per input the value that pads it, and the side.
        truncated: How many examples lost text to the length limit.
    """

    features: tuple[dict[str, Any], ...]
    rows: tuple[int, ...]
    offsets: tuple[tuple[tuple[int, int] | None, ...], ...] | None
    words: tuple[tuple[int | None, ...], ...] | None
    padding: Mapping[str, int]
    left: bool
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.features[index]


def length_limit(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None = None) -> int:
    """Returns the most tokens an input may have: the least of 512, the tokenizer's limit, the model's positions."""
    positions = getattr(config, "max_position_embeddings", None) or LONGEST
    if positions > 0 and getattr(config, "model_type", None) in OFFSET_POSITIONS:
        positions -= (getattr(config, "pad_token_id", None) or 0) + 1
    positions = positions if positions > 0 else LONGEST
    return int(min(LONGEST, tokenizer.model_max_length, positions))


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    problem_type: ProblemType | None = None,
    config: PreTrainedConfig | None = None,
    labels: bool = True,
) -> Encoded:
    """Returns the examples tokenised, with `labels` (or answer positions) beside the inputs where they have any.

    Labels must already be the head's (see `align_labels`).
    """
    limit = min(max_length or LONGEST, length_limit(tokenizer, config))
    padding = _padding(tokenizer, config)
    left = tokenizer.padding_side == "left"
    labelled = labels and examples.labels is not None
    if examples.kind == "question_answering":
        return _encode_questions(examples, tokenizer, limit, padding, left, labelled)
    if examples.kind == "token_classification":
        return _encode_words(examples, tokenizer, limit, padding, left, labelled)
    table = tokenizer(
        list(examples.texts),
        list(examples.pairs) if examples.pairs else None,
        truncation=True,
        max_length=limit,
    )
    features = _features(table, padding)
    if labelled:
        kind = problem_type or examples.problem_type
        convert = int if kind == "single_label_classification" else _as_floats
        for feature, label in zip(features, examples.labels or (), strict=True):
            feature["labels"] = convert(label)
    return Encoded(tuple(features), tuple(range(len(features))), None, None, padding, left)


def plan(encoded: Encoded, batch_size: int, *, bucket: bool = True) -> list[list[int]]:
    """Returns the features of each batch: longest first when bucketed, so that memory runs out at once or never."""
    order = list(range(len(encoded)))
    if bucket:
        order.sort(key=lambda i: -len(encoded.features[i]["input_ids"]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def collate(
    features: Sequence[Mapping[str, Any]], padding: Mapping[str, int], *, left: bool = False
) -> dict[str, Tensor]:
    """Returns the features as tensors padded to the longest of them."""
    longest = max(len(feature["input_ids"]) for feature in features)

    def padded(values: list[int], fill: int) -> list[int]:
        extra = [fill] * (longest - len(values))
        return extra + values if left else values + extra

    return {
        name: torch.tensor(
            [padded(f[name], padding[name]) if _is_sequence(name, f) else f[name] for f in features]
        )
        for name in features[0]
    }


def batches(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    *,
    problem_type: ProblemType | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    config: PreTrainedConfig | None = None,
    bucket: bool = True,
    labels: bool = True,
) -> Iterator[dict[str, Tensor]]:
    """Yields model inputs, longest examples first unless `bucket` is off, with labels where the examples have any."""
    encoded = encode(
        examples, tokenizer, max_length=max_length, problem_type=problem_type, config=config, labels=labels
    )
    for rows in plan(encoded, batch_size, bucket=bucket):
        yield collate([encoded.features[row] for row in rows], encoded.padding, left=encoded.left)


def _is_sequence(name: str, feature: Mapping[str, Any]) -> bool:
    """Says whether an input has one value per token: labels do only where their words do."""
    if name == "labels":
        return bool(feature.get("labels") is not None and isinstance(feature["labels"], TokenLabels))
    return isinstance(feature[name], list)


class TokenLabels(list[int]):
    """Labels with one value per token: told apart from several labels of one text when they are padded."""


def _as_floats(label: Any) -> Any:
    return [float(v) for v in label] if isinstance(label, tuple) else float(label)


def _padding(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None) -> dict[str, int]:
    """Returns the fill of each input the model takes; token types only where it has more than one."""
    types = config is None or getattr(config, "type_vocab_size", 0) > 1
    fills = {"input_ids": tokenizer.pad_token_id or 0, "attention_mask": 0, "labels": IGNORED}
    return fills | ({"token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)} if types else {})


def _features(table: Mapping[str, Any], padding: Mapping[str, int]) -> list[dict[str, Any]]:
    names = [name for name in table if name in padding]
    return [
        dict(zip(names, values, strict=True)) for values in zip(*(table[name] for name in names), strict=True)
    ]


def _encode_words(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    padding: dict[str, int],
    left: bool,
    labelled: bool,
) -> Encoded:
    table = tokenizer(
        [list(t) for t in examples.texts], is_split_into_words=True, truncation=True, max_length=limit
    )
    features = _features(table, padding)
    words = tuple(_first_tokens(table.word_ids(row)) for row in range(len(features)))
    if labelled:
        for row, (feature, starts) in enumerate(zip(features, words, strict=True)):
            tags = (examples.labels or ())[row]
            feature["labels"] = TokenLabels(IGNORED if word is None else tags[word] for word in starts)
    return Encoded(tuple(features), tuple(range(len(features))), None, words, padding, left)


def _first_tokens(word_ids: Sequence[int | None]) -> tuple[int | None, ...]:
    """Returns per token the word it begins; None for special tokens and for the rest of a word."""
    previous = (None, *word_ids[:-1])
    return tuple(word if word != before else None for word, before in zip(word_ids, previous, strict=True))


def _encode_questions(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    padding: dict[str, int],
    left: bool,
    labelled: bool,
) -> Encoded:
    table = tokenizer(
        list(examples.texts),
        list(examples.pairs or ()),
        truncation="only_second",
        max_length=limit,
        stride=min(STRIDE, limit // 4),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    features = _features(table, padding)
    rows = tuple(table["overflow_to_sample_mapping"])
    offsets = tuple(
        tuple(
            tuple(span) if side == 1 else None
            for span, side in zip(spans, table.sequence_ids(i), strict=True)
        )
        for i, spans in enumerate(table["offset_mapping"])
    )
    if labelled:
        for feature, row, spans in zip(features, rows, offsets, strict=True):
            start, end = _answer_tokens((examples.labels or ())[row], spans)
            feature.update(start_positions=start, end_positions=end)
    return Encoded(tuple(features), rows, offsets, None, padding, left)


def _answer_tokens(
    answers: Sequence[tuple[str, int]], spans: Sequence[tuple[int, int] | None]
) -> tuple[int, int]:
    """Returns the first answer's first and last token; the first token of all where this window lacks it."""
    if not answers:
        return 0, 0
    text, begin = answers[0]
    end = begin + len(text)
    inside = [i for i, span in enumerate(spans) if span is not None and span[0] < end and span[1] > begin]
    context = [span for span in spans if span is not None]
    if not inside or context[0][0] > begin or context[-1][1] < end:
        return 0, 0
    return inside[0], inside[-1]
