"""Differences of configuration and shape between checkpoints, every one of them, said briefly."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PretrainedConfig

from plait.checkpoints.source import Checkpoint

_OF_TRAINING = re.compile(
    r"dropout|initializer|_drop$|^use_cache$|^gradient_|^deterministic_|^reference_compile$"
)
_OF_CLASSIFIERS = re.compile(r"^classifier_|^summary_|^pooler_")
_OF_LANGUAGE_MODELS = re.compile(r"^decoder_|^sparse_|^tie_|^is_decoder$|^legacy$")
_OF_TEXTS = re.compile(r"^(bos|eos|cls|sep|unk|mask)_token_id$|^vocab_size$|^add_cross_attention$")
_UNDECLARED = {  # DeBERTa reads these though its configuration class does not declare them
    "share_att_key", "position_buckets", "norm_rel_ebd", "conv_kernel_size", "conv_act", "conv_groups",
    "attention_head_size", "embedding_size",
}  # fmt: skip


def body_settings(config: PretrainedConfig, *, heads: bool = False) -> dict[str, Any]:
    """Returns the settings on which the encoder's output depends, and with `heads` also what classifiers make of it.

    Those of training and records do not count. The vocabulary's size shows in the shapes.
    """
    ignored = (_OF_TRAINING, _OF_TEXTS, _OF_LANGUAGE_MODELS, *(() if heads else (_OF_CLASSIFIERS,)))
    declared = set(type(config)().to_dict()) - set(PretrainedConfig().to_dict())
    found = config.to_dict()
    return {
        name: found[name]
        for name in found
        if (name in declared or name in _UNDECLARED) and not any(p.search(name) for p in ignored)
    }


def config_differences(everyone: Sequence[Checkpoint], *, heads: bool = False) -> list[str]:
    """Returns each setting of the encoder that is not the same everywhere, with the value of each checkpoint.

    With `heads`, those of its heads are compared too.
    """
    settings = [body_settings(checkpoint.config, heads=heads) for checkpoint in everyone]
    names = dict.fromkeys(name for found in settings for name in found)
    differing = (name for name in names if any(s.get(name) != settings[0].get(name) for s in settings[1:]))
    return [f"{name} differs ({_said(everyone, [s.get(name) for s in settings])})" for name in differing]


def titles(everyone: Sequence[Checkpoint]) -> list[str]:
    """Returns what messages call checkpoints: their names, or where they come from if folders share a name."""
    names = [checkpoint.name for checkpoint in everyone]
    return names if len(set(names)) == len(names) else [checkpoint.origin for checkpoint in everyone]


def _said(everyone: Sequence[Checkpoint], values: Iterable[Any]) -> str:
    return ", ".join(f"{who}: {value}" for who, value in zip(titles(everyone), values, strict=True))


def shape_differences(everyone: Sequence[Checkpoint]) -> list[str]:
    """Returns each body parameter whose shape is not the same everywhere; equal complaints of layers share a line."""
    names = dict.fromkeys(name for checkpoint in everyone for name in checkpoint.body)
    layers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        shapes = [
            (who, list(c.header(c.body[name]).shape))
            for who, c in zip(titles(everyone), everyone, strict=True)
            if name in c.body
        ]
        if len({tuple(shape) for _, shape in shapes}) > 1:
            said = ", ".join(f"{who}: {shape}" for who, shape in shapes)
            layers[re.sub(r"\d+", "#", name), said].append(name)
    return [
        f"shape of {_range(same)} differs ({said}){_hint(everyone, same)}"
        for (_, said), same in layers.items()
    ]


def _range(names: Sequence[str]) -> str:
    """Returns one name for names that differ in one number: `encoder.layer.{0,1,2}.output.dense.weight`."""
    parts = [re.split(r"(\d+)", name) for name in names]
    columns = (list(dict.fromkeys(column)) for column in zip(*parts, strict=True))
    return "".join(column[0] if len(column) == 1 else "{" + ",".join(column) + "}" for column in columns)


def _hint(everyone: Sequence[Checkpoint], names: Sequence[str]) -> str:
    rows = {
        c.config.vocab_size: c.header(c.body[name]).shape[0]
        for c in everyone
        for name in names
        if name in c.body
    }
    words = all(size == length for size, length in rows.items()) and len(rows) > 1
    return ": the vocabularies differ; resize_token_embeddings can undo padding" if words else ""
