"""Tiny decoders: their weights, and a tokenizer that need not have a pad token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

WORDS = [
    "[PAD]", "[UNK]", "[END]", "good", "bad", "film", "the", "a", "was", "great", "awful", "news", "sport", "science",
]  # fmt: skip
TEXTS = ["good film", "bad", "the film was great news", "a awful sport", "science", "the the a was bad film news"]
_SIZES = {
    "gpt2": {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2},
    "llama": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
}  # fmt: skip
_SIZES["qwen2"] = {**_SIZES["llama"], "num_key_value_heads": 2}


def decoder(
    folder: str | Path, auto: Any, family: str = "gpt2", *, seed: int = 1, pad: str | None = None, **config: Any
) -> str:
    """Returns the folder of a decoder of one base, moved by `seed`; `pad` is its tokenizer's pad token."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "bos_token_id": 2, "eos_token_id": 2, **_SIZES[family]}
    model: PreTrainedModel = auto.from_config(AutoConfig.for_model(family, **(sizes | config)))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            inside = name.startswith(model.base_model_prefix)
            parameter.add_(torch.randn_like(parameter), alpha=0.005 if inside else 0.5)
            if "wpe" in name or "wte" in name or "embed" in name:
                parameter.mul_(20)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="[END]", pad_token=pad, model_max_length=64
    ).save_pretrained(folder)
    return str(folder)
