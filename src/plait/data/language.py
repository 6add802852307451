"""Texts as language models see them: the labels are the tokens themselves, or those of a target beside each text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from plait.boundary import reading
from plait.data.batching import UNKNOWN, Encoded, collate, length_limit, padding_for
from plait.data.examples import Examples
from plait.data.labels import IGNORED
from plait.errors import DataError

LOGITS = 2**26
"""Logits of one batch at most: 256 MB in float32."""
LanguageKind = Literal["causal", "seq2seq"]


def of_language(examples: Examples, kind: LanguageKind) -> Examples:
    """Returns examples as a language model takes them: texts alone, or texts with their targets as pairs.

    Raises:
        DataError: words or questions instead of texts, pairs where one text is wanted, or no targets.
    """
    if examples.kind != "sequence_classification":
        raise DataError(
            f"{examples.source}: holds {examples.kind.replace('_', ' ')}, a language model takes texts: name the "
            "column (text, --text-column)"
        )
    if kind == "causal":
        if examples.pairs is not None:
            raise DataError(
                f"{examples.source}: has pairs of texts, a causal language model takes one: name its column (text, "
                "--text-column)"
            )
        return examples.unlabelled()
    targets = examples.pairs if examples.pairs is not None else examples.labels
    if targets is None or not all(isinstance(target, str) for target in targets):
        found = "no targets" if targets is None else "labels that are no texts"
        raise DataError(
            f"{examples.source}: has {found}, a model of targets given texts needs one each: name their column (label, "
            "--label-column)"
        )
    return replace(examples, pairs=tuple(map(str, targets)), labels=None, label_names=None)


def encode_language(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    kind: LanguageKind,
    *,
    max_length: int | None = None,
    config: PreTrainedConfig | None = None,
) -> Encoded:
    """Returns texts tokenised, one per row so that none sees another, with `labels` in the tokens' own places.

    Texts (and targets) are cut at `max_length`. Examples are those of `of_language`.
    """
    limit = length_limit(tokenizer, config, max_length)
    table = _tokens(examples, list(examples.texts), tokenizer, limit)
    features = [
        {"input_ids": list(ids), "attention_mask": [1] * len(ids), "labels": list(ids)} for ids in table
    ]
    if kind == "seq2seq":
        wanted = _tokens(examples, list(examples.pairs or ()), tokenizer, limit, target=True)
        for feature, ids in zip(features, wanted, strict=True):
            feature["labels"] = list(ids)
    fill = padding_for(tokenizer, config)["input_ids"]
    padding = {"input_ids": 0 if fill == UNKNOWN else fill, "attention_mask": 0}
    return Encoded(tuple(features), tuple(range(len(features))), padding)


def _tokens(
    examples: Examples, texts: list[str], tokenizer: PreTrainedTokenizerBase, limit: int, *, target: bool = False
) -> list[list[int]]:
    what, advice = "a text cannot be tokenised", "half a character is none: mend the file"
    given: dict[str, Any] = {"text_target" if target else "text": texts}
    with reading(examples.source, what, error=DataError, advice=advice):
        found: list[list[int]] = tokenizer(**given, truncation=True, max_length=limit)["input_ids"]
    return found


def language_batches(
    encoded: Encoded, batch_size: int, vocabulary: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yields rows and their tensors, the longest first; fewer together where their logits would fill the memory."""
    order = sorted(range(len(encoded)), key=lambda row: -_width(encoded[row]))
    while order:
        size = max(1, min(batch_size, LOGITS // (max(_width(encoded[order[0]]), 1) * vocabulary)))
        rows, order = order[:size], order[size:]
        yield rows, collate_language([encoded[row] for row in rows], encoded)


def _width(feature: dict[str, Any]) -> int:
    return max(len(feature["input_ids"]), len(feature["labels"]))


def collate_language(features: list[dict[str, Any]], encoded: Encoded) -> dict[str, Tensor]:
    """Returns features as one batch; labels are padded to their own longest."""
    longest = max(len(feature["labels"]) for feature in features)
    padded = [
        {**feature, "labels": feature["labels"] + [IGNORED] * (longest - len(feature["labels"]))}
        for feature in features
    ]
    return collate(padded, encoded.padding)
