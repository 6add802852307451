"""Examples to tensors: tokenised once, sorted by length so that little is padded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase

from plait.boundary import reading
from plait.data.examples import Examples, ProblemType
from plait.data.images import PIXELS, Features, stacked
from plait.data.labels import IGNORED
from plait.errors import DataError

logger = logging.getLogger(__name__)

LONGEST = 512
STRIDE = 128
UNKNOWN = -1
"""The padding of inputs where neither model nor tokenizer has any: no row of an embedding, so it cannot pass unseen."""
# Their positions start behind the padding id.
OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples, not padded.

    Attributes:
        features: Per feature its model inputs as lists, and its labels where wanted.
        rows: Per feature the example it came from (a long context becomes several features).
        padding: The inputs with one value per token, and what pads each (`UNKNOWN` where nothing can).
        alone: Whether the model takes one text at a time, for want of padding by which it would find a text's end.
        offsets: For question answering, per feature and token the characters of the context, None elsewhere.
        words: For token classification, per feature and token the word it begins, None elsewhere.
    """

    features: Sequence[dict[str, Any]]
    rows: tuple[int, ...]
    padding: Mapping[str, int]
    offsets: tuple[tuple[tuple[int, int] | None, ...], ...] | None = None
    words: tuple[tuple[int | None, ...], ...] | None = None
    alone: bool = False

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.features[index]

    @property
    def lengths(self) -> list[int]:
        """Returns the number of tokens of each feature."""
        if isinstance(self.features, Features):
            return [1] * len(self.features)
        return [len(feature["input_ids"]) for feature in self.features]

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns some of the features as one batch.

        Raises:
            DataError: When the model cannot take them together.
        """
        if self.alone and len(features) > 1:
            raise DataError(
                "texts cannot share a batch: the model finds a text's last token by its padding and its config has no "
                "pad_token_id; set it in config.json, to that of the tokenizer"
            )
        return collate(features, self.padding)


def length_limit(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None = None,
    max_length: int | None = None,
) -> int:
    """Returns the most tokens an input may have: `max_length` (by default 512), unless tokenizer or model take less."""
    # An ensemble takes what its encoder takes.
    config = getattr(config, "encoder", None) or config
    limits = [LONGEST if max_length is None else max_length, tokenizer.model_max_length]
    if positions := getattr(config, "max_position_embeddings", None):
        offset = getattr(config, "model_type", None) in OFFSET_POSITIONS
        limits.append(positions - (getattr(config, "pad_token_id", None) or 0) - 1 if offset else positions)
    return int(min(limits))


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    problem_type: ProblemType | None = None,
    config: PreTrainedConfig | None = None,
    labels: bool = True,
) -> Encoded:
    """Returns the examples tokenised, labels (or answer positions) beside the inputs if they have any.

    Labels must already be the head's (see `align_labels`). The model's `config` bounds the length and says
    whether it knows token types. A `max_length` beyond what model or tokenizer take is cut to that, and said so.

    Raises:
        DataError: When the length leaves no room for a question and its context.
    """
    if examples.kind == "image_classification":
        return _encode_images(examples, tokenizer, problem_type or examples.problem_type, labelled=labels)
    if hasattr(tokenizer, "image_mean"):
        raise DataError(f"{examples.source}: holds texts; the model reads images: expected a folder or column of them")
    limit = length_limit(tokenizer, config, max_length)
    if max_length is not None and limit < max_length:
        logger.warning("the model takes at most %d tokens: max_length %d is cut to that", limit, max_length)
    fills = padding_for(tokenizer, config)
    alone = examples.kind == "sequence_classification" and without_padding(config)
    job = _Job(examples, tokenizer, limit, fills, labels and examples.labels is not None, alone)
    if examples.kind == "question_answering":
        return _encode_questions(job)
    if examples.kind == "token_classification":
        return _encode_words(job)
    return _encode_texts(job, problem_type or examples.problem_type)


def plan(encoded: Encoded, batch_size: int, *, bucket: bool = True) -> list[list[int]]:
    """Returns each batch's features; bucketed, the longest come first: memory runs out at once or never.

    Where nothing can pad, a batch holds texts of one length.
    """
    lengths = encoded.lengths
    order = list(range(len(encoded)))
    if bucket:
        order.sort(key=lambda i: -lengths[i])
    if encoded.alone:
        batch_size = 1
    if encoded.padding.get("input_ids") != UNKNOWN:
        return _cut_up(order, batch_size)
    groups: dict[int, list[int]] = {}
    for row in order:
        groups.setdefault(lengths[row], []).append(row)
    return [batch for group in groups.values() for batch in _cut_up(group, batch_size)]


def _cut_up(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def collate(features: Sequence[Mapping[str, Any]], padding: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns the features as tensors, those named in `padding` padded to the longest.

    Padding goes behind the text, whatever the tokenizer's side: encoders read their first token, and
    labels and answers count from it.

    Raises:
        DataError: When lengths differ and nothing can pad.
    """
    if PIXELS in features[0]:
        return stacked(features)
    sizes = [len(feature["input_ids"]) for feature in features]
    longest = max(sizes)
    if padding.get("input_ids") == UNKNOWN and min(sizes) < longest:
        raise DataError(
            "texts of different length cannot share a batch: neither the model's config nor its tokenizer has a "
            "pad token; set pad_token_id in config.json, or take a batch size of 1"
        )

    def column(name: str) -> list[Any]:
        values = [feature[name] for feature in features]
        if name not in padding:
            return values
        return [value + [padding[name]] * (longest - len(value)) for value in values]

    return {name: torch.tensor(column(name)) for name in features[0]}


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
    """Yields model inputs, longest first unless `bucket` is off, with labels where there are any."""
    encoded = encode(
        examples, tokenizer, max_length=max_length, problem_type=problem_type, config=config, labels=labels
    )
    for rows in plan(encoded, batch_size, bucket=bucket):
        yield collate([encoded.features[row] for row in rows], encoded.padding)


@dataclass(frozen=True)
class _Job:
    """What all three kinds of data need to be tokenised."""

    examples: Examples
    tokenizer: PreTrainedTokenizerBase
    limit: int
    padding: dict[str, int]
    labelled: bool
    alone: bool

    def tokens(self, *texts: Any, truncation: Any = True, **options: Any) -> BatchEncoding:
        what, advice = "a text cannot be tokenised", "half a character is none: mend the file"
        with reading(self.examples.source, what, error=DataError, advice=advice):
            table: BatchEncoding = self.tokenizer(
                *texts, truncation=truncation, max_length=self.limit, **options
            )
        return table

    def features(self, table: BatchEncoding) -> list[dict[str, Any]]:
        """Returns one dict per feature of the inputs that the model takes."""
        names = [name for name in table if name in self.padding]
        return [dict(zip(names, row, strict=True)) for row in zip(*(table[n] for n in names), strict=True)]

    def encoded(self, features: list[dict[str, Any]], **more: Any) -> Encoded:
        return Encoded(tuple(features), padding=self.padding, alone=self.alone, **more)


def padding_for(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None) -> dict[str, int]:
    """Returns the fill of each input with one value per token; token types only where a model has several.

    The model's pad token counts before the tokenizer's: decoders look for it to find the last token of a text, and
    some encoders count positions by it.
    """
    types = config is None or (getattr(config, "type_vocab_size", 0) or 0) > 1
    fills = {"input_ids": _pad_id(tokenizer, config), "attention_mask": 0}
    return fills | ({"token_type_ids": tokenizer.pad_token_type_id} if types else {})


def _pad_id(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None) -> int:
    wanted = _wanted_padding(config)
    if wanted is None:
        return UNKNOWN if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    rows = getattr(_text_config(config), "vocab_size", None)
    # Such as the -1 of early LLaMA: the model looks for what no text can hold.
    return wanted if 0 <= wanted < (rows or wanted + 1) else UNKNOWN


def without_padding(config: PreTrainedConfig | None) -> bool:
    """Says whether a model that looks for padding has none to look for: its class then takes single texts alone."""
    return config is not None and _wanted_padding(config) is None


def _wanted_padding(config: PreTrainedConfig | None) -> int | None:
    found = getattr(_text_config(config), "pad_token_id", None)
    return found if found is None else int(found)


def _text_config(config: PreTrainedConfig | None) -> Any:
    # An ensemble pads as its encoder does.
    config = getattr(config, "encoder", None) or config
    return config.get_text_config() if isinstance(config, PreTrainedConfig) else config


def _encode_texts(job: _Job, problem: ProblemType) -> Encoded:
    examples = job.examples
    table = job.tokens(list(examples.texts), list(examples.pairs) if examples.pairs else None)
    features = job.features(table)
    if job.labelled:
        convert = int if problem == "single_label_classification" else _as_floats
        for feature, label in zip(features, examples.labels or (), strict=True):
            feature["labels"] = convert(label)
    return job.encoded(features, rows=tuple(range(len(features))))


def _encode_images(examples: Examples, processor: Any, problem: ProblemType, *, labelled: bool) -> Encoded:
    """Returns images as a model is given them; each is opened when its batch comes."""
    if isinstance(processor, PreTrainedTokenizerBase):
        raise DataError(f"{examples.source}: holds images; the model reads texts")
    convert = int if problem == "single_label_classification" else _as_floats
    labels = [convert(label) for label in examples.labels] if labelled and examples.labels is not None else None
    return Encoded(Features(examples.texts, processor, labels), tuple(range(len(examples))), {})


def _as_floats(label: Any) -> Any:
    return [float(v) for v in label] if isinstance(label, tuple) else float(label)


def _encode_words(job: _Job) -> Encoded:
    table = job.tokens([list(words) for words in job.examples.texts], is_split_into_words=True)
    features = job.features(table)
    words = tuple(_first_tokens(table.word_ids(row)) for row in range(len(features)))
    if job.labelled:
        for feature, starts, tags in zip(features, words, job.examples.labels or (), strict=True):
            feature["labels"] = [IGNORED if word is None else tags[word] for word in starts]
        job.padding["labels"] = IGNORED
    return job.encoded(features, rows=tuple(range(len(features))), words=words)


def _first_tokens(word_ids: Sequence[int | None]) -> tuple[int | None, ...]:
    """Returns per token the word it begins; None for special tokens and for the rest of a word."""
    previous = (None, *word_ids[:-1])
    return tuple(word if word != before else None for word, before in zip(word_ids, previous, strict=True))


def _encode_questions(job: _Job) -> Encoded:
    examples = job.examples
    room = job.limit - job.tokenizer.num_special_tokens_to_add(pair=True)
    if room < 2:
        raise DataError(
            f"{examples.source}: max_length {job.limit} leaves no room for a question and a context"
        )
    table = job.tokens(
        _bounded(examples.texts, job.tokenizer, room // 2),
        list(examples.pairs or ()),
        truncation="only_second",
        stride=min(STRIDE, job.limit // 4, room - room // 2 - 1),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    features, rows = job.features(table), tuple(table["overflow_to_sample_mapping"])
    offsets = tuple(
        tuple(span if side == 1 else None for span, side in zip(spans, table.sequence_ids(i), strict=True))
        for i, spans in enumerate(table["offset_mapping"])
    )
    if job.labelled:
        for feature, row, spans in zip(features, rows, offsets, strict=True):
            start, end = _answer_tokens((examples.labels or ())[row], spans)
            feature.update(start_positions=start, end_positions=end)
    return job.encoded(features, rows=rows, offsets=offsets)


def _bounded(questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, most: int) -> list[str]:
    """Returns the questions, those of more than `most` tokens cut behind them: their contexts need room as well."""
    tokens = tokenizer(list(questions), add_special_tokens=False, verbose=False)["input_ids"]
    long = {row for row, ids in enumerate(tokens) if len(ids) > most}
    if long:
        logger.warning("%d of %d questions were cut to %d tokens", len(long), len(questions), most)
    return [_cut(text, tokenizer, most) if row in long else text for row, text in enumerate(questions)]


def _cut(text: str, tokenizer: PreTrainedTokenizerBase, most: int) -> str:
    # The last word's rest can fall into more pieces than before, so once need not be enough.
    while True:
        table = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = table["offset_mapping"]
        if len(spans) <= most:
            return text
        text = text[: min(spans[most - 1][1], len(text) - 1)]


def _answer_tokens(
    answers: Sequence[tuple[str, int]], spans: Sequence[tuple[int, int] | None]
) -> tuple[int, int]:
    """Returns the first answer's first and last token; the first token of all where this window lacks it."""
    if not answers:
        return 0, 0
    text, begin = answers[0]
    end = begin + len(text)
    context = [span for span in spans if span is not None]
    inside = [i for i, span in enumerate(spans) if span is not None and span[0] < end and span[1] > begin]
    if not inside or context[0][0] > begin or context[-1][1] < end:
        return 0, 0
    return inside[0], inside[-1]
