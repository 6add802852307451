"""Logits of a model for examples: bucketed by length for speed, given back in the order of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plait import processes, progress
from plait.checkpoints.answering import answering, check_answers
from plait.data import Encoded, Examples, collate, encode, plan
from plait.encoders.modes import accelerated, evaluating

Outputs = Mapping[str, Tensor]
Forward = Callable[[dict[str, Tensor]], Outputs]
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
LOGITS = ("logits", "start_logits", "end_logits")


def predict_logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
) -> list[Tensor]:
    """Returns one float32 tensor of logits per example, in order: [C], or [words, C] for tags.

    A word that the length limit cut off has a row of -∞: no class is likely.
    """
    encoded = encode(examples, tokenizer, max_length=max_length, config=model.config, labels=False)
    logits = predict_encoded(model, encoded, batch_size=batch_size)["logits"]
    if encoded.words is None:
        return logits
    return [
        _per_word(rows, starts, len(words))
        for rows, starts, words in zip(logits, encoded.words, examples.texts, strict=True)
    ]


def predict_encoded(
    model: PreTrainedModel, encoded: Encoded, *, batch_size: int = 32, what: str = "predicting"
) -> dict[str, list[Tensor]]:
    """Returns per output the rows of all features, in order, padding cut off."""
    with accelerated(model) as device, evaluating(model), progress.task(what, len(encoded)) as tick:

        def forward(inputs: dict[str, Tensor]) -> Outputs:
            with answering(model):
                outputs = model(**{name: tensor.to(device) for name, tensor in inputs.items()})
            found = {name: outputs[name] for name in LOGITS if name in outputs}
            check_answers(model, found)
            return found

        return run(forward, encoded, batch_size, tick)


def run(
    forward: Forward, encoded: Encoded, batch_size: int, tick: progress.Tick = progress.nothing
) -> dict[str, list[Tensor]]:
    """Returns what `forward` gives for each feature, in the features' order."""
    found: dict[str, dict[int, Tensor]] = {}
    for rows in processes.mine(plan(encoded, batch_size)):
        found_there = (encoded.features[row] for row in rows)
        features = [{name: value for name, value in one.items() if name in INPUTS} for one in found_there]
        inputs = collate(features, encoded.padding)
        for name, table in forward(inputs).items():
            for row, values in zip(rows, table.float().cpu(), strict=True):
                found.setdefault(name, {})[row] = _cut(values, row, encoded)
        tick(len(rows))
    parts = processes.everyones(found)
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: processes.in_order([part.get(name, {}) for part in parts]) for name in names}


def _cut(values: Tensor, row: int, encoded: Encoded) -> Tensor:
    """Returns token outputs without those of the padding; a text's single row of logits as it is."""
    one_row = encoded.words is None and encoded.offsets is None
    return (values if one_row else values[: len(encoded.features[row]["input_ids"])]).clone()


def _per_word(rows: Tensor, starts: tuple[int | None, ...], count: int) -> Tensor:
    words = rows.new_full((count, rows.shape[-1]), -torch.inf)
    for row, word in zip(rows, starts, strict=True):
        if word is not None:
            words[word] = row
    return words
