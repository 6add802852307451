"""Tiny real models for every family and head, their tokenizers, and texts: no network, milliseconds each.

`tiny` draws each parameter from its own name, so the bodies of all heads of one family come from one base:
another `seed` moves a body only by `drift`, as fine-tuning does, and gives it another head.
"""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    AlbertTokenizer,
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertTokenizer,
    DebertaV2Tokenizer,
    MPNetTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()  # one line per saved model would drown a failing test's output

FAMILIES = (
    "bert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "deberta-v2", "albert", "modernbert",
)  # fmt: skip
HEADS = ("sequence", "regression", "multi_label", "token", "qa", "body")

_AUTO = {
    "sequence": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "multi_label": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "qa": AutoModelForQuestionAnswering,
    "body": AutoModel,
}
_PROBLEMS = {
    "sequence": "single_label_classification",
    "regression": "regression",
    "multi_label": "multi_label_classification",
}
_SPEECH = (
    "the a film book food song was is good bad dull bright slow quick very not quite really and but who what",
    "where when did john mary london paris play make see , . ? !",
)
_WORDS = [word for line in _SPEECH for word in line.split()]
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 16, "n_heads": 4, "n_layers": 2, "hidden_dim": 24},
    "electra": {"embedding_size": 8},
    "albert": {"embedding_size": 8, "num_hidden_layers": 3},
    "deberta-v2": {
        "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": False,
        "position_buckets": 8, "position_biased_input": False, "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3, "type_vocab_size": 0, "pooler_hidden_size": 16,
    },
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8, "layer_norm_eps": None},
}  # fmt: skip


def texts(n: int, *, seed: int = 0) -> list[str]:
    """Returns n sentences of varied length whose words every tiny tokenizer knows."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 12, (n,), generator=draw).tolist()
    return [
        " ".join(_WORDS[i] for i in torch.randint(len(_WORDS), (k,), generator=draw).tolist())
        for k in lengths
    ]


@cache
def _word_pieces(specials: tuple[str, ...]) -> dict[str, int]:
    tokens = [*specials, *_WORDS, *_LETTERS, *(f"##{c}" for c in _LETTERS), "'", "-"]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


@cache
def _unigrams(specials: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    pieces = [*(f"▁{w}" for w in _WORDS), "▁", *_LETTERS, ",", ".", "?", "!", "'", "-"]
    scores = {piece: -3.0 - 0.01 * i for i, piece in enumerate(dict.fromkeys(pieces))}
    return (*((token, 0.0) for token in specials), *scores.items())


@cache
def _byte_pairs(specials: tuple[str, ...]) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = dict.fromkeys((*specials, *sorted(ByteLevel.alphabet())))
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        left = "Ġ"
        for letter in word:
            pair, left = (left, letter), left + letter
            if left not in vocabulary:
                vocabulary[left] = None
                merges.append(pair)
    return {token: i for i, token in enumerate(vocabulary)}, tuple(merges)


def tiny_tokenizer(family: str, **changes: Any) -> PreTrainedTokenizerBase:
    """Returns a small fast tokenizer of the family's own class; `changes` are its constructor's options."""
    bert = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    roberta = ("<s>", "<pad>", "</s>", "<unk>")
    changes.setdefault("model_max_length", 64)
    match family:
        case "bert" | "distilbert" | "electra":
            return BertTokenizer(vocab=_word_pieces(bert), **changes)
        case "mpnet":
            return MPNetTokenizer(vocab=_word_pieces(("<s>", "<pad>", "</s>", "[UNK]", "<mask>")), **changes)
        case "roberta":
            vocabulary, merges = _byte_pairs((*roberta, "<mask>"))
            return RobertaTokenizer(vocab=dict(vocabulary), merges=list(merges), **changes)
        case "xlm-roberta":
            return XLMRobertaTokenizer(vocab=[*_unigrams(roberta), ("<mask>", 0.0)], **changes)
        case "deberta-v2":
            return DebertaV2Tokenizer(
                vocab=list(_unigrams(("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"))), **changes
            )
        case "albert":
            return AlbertTokenizer(
                vocab=list(_unigrams(("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"))), **changes
            )
        case "modernbert":
            return _modernbert_tokenizer(**changes)
    raise ValueError(f"no tiny tokenizer for {family!r}; known: {', '.join(FAMILIES)}")


def _modernbert_tokenizer(**changes: Any) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary, merges = _byte_pairs(("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"))
    tokenizer = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=list(merges), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in list(vocabulary)[:5]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]", mask_token="[MASK]", model_input_names=["input_ids", "attention_mask"], **changes,
    )  # fmt: skip


@cache
def _vocabulary_facts(family: str) -> tuple[tuple[str, int | None], ...]:
    tokenizer = tiny_tokenizer(family)
    return (
        ("vocab_size", len(tokenizer)),
        ("pad_token_id", tokenizer.pad_token_id),
        ("cls_token_id", tokenizer.cls_token_id),
        ("sep_token_id", tokenizer.sep_token_id),
        ("bos_token_id", tokenizer.cls_token_id),
        ("eos_token_id", tokenizer.sep_token_id),
    )


def tiny_config(family: str, head: str = "sequence", *, labels: int = 3, **config: Any) -> PretrainedConfig:
    """Returns a configuration of width 16, 4 heads, 24 neurons, 2 layers (ALBERT: one, applied 3 times)."""
    settings: dict[str, Any] = {
        "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 24,
        "max_position_embeddings": 66, **dict(_vocabulary_facts(family)), **_SIZES.get(family, {}),
    }  # fmt: skip
    if family == "distilbert":
        for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"):
            del settings[name]
    if head in _PROBLEMS:
        settings["problem_type"] = _PROBLEMS[head]
    if head in ("sequence", "multi_label", "token"):
        settings["id2label"] = {i: f"{head}-{i}" for i in range(labels)}
        settings["label2id"] = {f"{head}-{i}": i for i in range(labels)}
    elif head == "regression":
        settings["num_labels"] = 1
    settings = {name: value for name, value in (settings | config).items() if value is not None}
    return AutoConfig.for_model(family, **settings)


def _normal(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    return torch.randn(shape, generator=draw)


def _value(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """Returns a nowhere degenerate parameter: norms are not one, biases not zero, weights not tiny."""
    noise = _normal(name, shape, seed)
    if name.endswith("bias"):
        return 0.3 * noise
    if len(shape) == 1:
        return 1.0 + 0.3 * noise
    return noise * (0.8 if "embeddings" in name else 1.2 / shape[1] ** 0.5)


def tiny(
    family: str,
    head: str = "sequence",
    *,
    seed: int = 0,
    labels: int = 3,
    base_seed: int = 0,
    drift: float = 0.2,
    **config: Any,
) -> PreTrainedModel:
    """Returns a model in eval mode; equal arguments give equal weights, `base_seed` is its base."""
    model = _AUTO[head].from_config(tiny_config(family, head, labels=labels, **config))
    prefix = "" if head == "body" else f"{model.base_model_prefix}."
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(prefix):
                inner = name.removeprefix(prefix)
                value = _value(inner, parameter.shape, base_seed)
                spread = value.std() if value.numel() > 1 else 0.1
                value += drift * spread * _normal(inner, parameter.shape, 1000 + seed) if drift else 0.0
            else:
                value = _value(name, parameter.shape, 2000 + seed)
            parameter.copy_(value)
    return model.eval()


def save(model: PreTrainedModel, folder: str | Path, tokenizer: bool = True, **options: Any) -> Path:
    """Returns the folder the model (and its tokenizer) is saved to; `options` go to `save_pretrained`."""
    folder = Path(folder)
    model.save_pretrained(folder, **options)
    if tokenizer:
        tiny_tokenizer(model.config.model_type).save_pretrained(folder)
    return folder


def body(folder: str | Path) -> dict[str, torch.Tensor]:
    """Returns the encoder's parameters at the top of a merged checkpoint, by names that begin at the encoder."""
    from plait.checkpoints.checkpoint import open_checkpoint

    found = open_checkpoint(folder)
    return {name: found.read(stored) for name, stored in found.body.items()}
