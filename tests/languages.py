"""Tiny language models of every family in the table: nowhere degenerate, and batches of tokens for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.decoders import WORDS
from tests.models import _normal, _value

VOCABULARY = 30
_LLAMA: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_MIXTURE = {**_LLAMA, "moe_intermediate_size": 12, "num_experts_per_tok": 2, "experts_implementation": "eager"}
_T5: dict[str, Any] = {
    "d_model": 16, "d_kv": 3, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "relative_attention_num_buckets": 8, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "llama-tied": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    "llama-ungrouped": ("llama", {**_LLAMA, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**_LLAMA, "sliding_window": 4}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", {**_LLAMA, "head_dim": 8}),
    "gemma": ("gemma", {**_LLAMA, "head_dim": 8, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}),
    "gemma3_text": ("gemma3_text", {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}),
    "gpt2": ("gpt2", {
        "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24, "n_positions": 64, "bos_token_id": 2,
        "eos_token_id": 2,
    }),
    "t5": ("t5", {**_T5, "tie_word_embeddings": True}),
    "t5-gated": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mixtral": ("mixtral", {**_MIXTURE, "num_local_experts": 3}),
    "qwen2_moe": ("qwen2_moe", {
        **_MIXTURE, "num_experts": 3, "shared_expert_intermediate_size": 20, "decoder_sparse_step": 1,
    }),
    "qwen3_moe": ("qwen3_moe", {**_MIXTURE, "num_experts": 3, "head_dim": 8}),
    "opt": ("opt", {  # a family without a table
        "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "word_embed_proj_dim": 16, "pad_token_id": 0, "bos_token_id": 2,
        "eos_token_id": 2,
    }),
}  # fmt: skip
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
TABLED = tuple(name for name in SIZES if name != "opt")
NODED = tuple(name for name in TABLED if name not in MIXTURES)
"""Those whose heads and neurons have mask nodes."""


def is_seq2seq(name: str) -> bool:
    """Says whether a model gives the likelihood of targets given texts."""
    return SIZES[name][0] == "t5"


def tiny_language(name: str, *, seed: int = 0, drift: float = 0.2, **changes: Any) -> PreTrainedModel:
    """Returns a language model in eval mode; equal arguments give equal weights, all seeds have one base."""
    family, sizes = SIZES[name]
    config = AutoConfig.for_model(family, **{"vocab_size": VOCABULARY, **sizes, **changes})
    if "experts_implementation" in sizes:
        config._experts_implementation = "eager"  # the fused product knows no float64
    auto = AutoModelForSeq2SeqLM if is_seq2seq(name) else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config)
    with torch.no_grad():
        for inner, parameter in model.named_parameters():
            value = _value(inner, parameter.shape, 0)
            if parameter.dim() == 3:
                value *= parameter.shape[1] ** 0.5 / parameter.shape[2] ** 0.5
            spread = value.std() if value.numel() > 1 else 0.1
            parameter.copy_(value + drift * spread * _normal(inner, parameter.shape, 1000 + seed))
    return model.eval()


def tokens(name: str, *, seed: int = 0, lengths: tuple[int, ...] = (7, 4, 6)) -> list[dict[str, Tensor]]:
    """Returns unpadded examples of a model, one row each, with labels in the tokens' own places."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        ids = torch.randint(3, VOCABULARY, (1, length), generator=draw)
        labels = torch.randint(3, VOCABULARY, (1, length - 1), generator=draw) if is_seq2seq(name) else ids
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found


def padded(some: list[dict[str, Tensor]], *, extra: int = 0) -> dict[str, Tensor]:
    """Returns examples as one batch, with `extra` more columns of padding than needed."""
    fills = {"input_ids": 0, "attention_mask": 0, "labels": -100}

    def column(key: str) -> Tensor:
        width = max(one[key].shape[1] for one in some) + extra
        pad = torch.nn.functional.pad
        return torch.cat([pad(one[key], (0, width - one[key].shape[1]), value=fills[key]) for one in some])

    return {key: column(key) for key in fills}


def word_tokenizer(*, bos: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of a few words, some of several bytes; `eos` ends targets, as T5's does."""
    words = [*WORDS, *(f"w{i}" for i in range(VOCABULARY - len(WORDS)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if eos:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64,
        bos_token="[END]" if bos else None, eos_token="[END]" if bos else None,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def save_language(name: str, folder: Path, *, seed: int = 0, drift: float = 0.2, **changes: Any) -> str:
    """Returns the folder of a saved language model with its tokenizer."""
    tiny_language(name, seed=seed, drift=drift, **changes).save_pretrained(folder)
    word_tokenizer(eos=is_seq2seq(name)).save_pretrained(folder)
    return str(folder)


def write_texts(file: Path, texts: list[str], targets: list[str] | None = None) -> str:
    """Returns a file of texts, with targets where a model wants some."""
    rows = [{"text": text} for text in texts]
    for row, target in zip(rows, targets or [], strict=False):
        row["target"] = target
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(file)
