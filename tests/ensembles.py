"""What the tests of ensembles share: bases and data in a folder, a quick training, and how results are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from plait.cli import invoke
from tests.models import save, texts, tiny

NAMES = ("bad", "good")


QUICK: dict[str, Any] = {
    "epochs": 1, "max_length": 16, "batch_size": 8, "members": 2, "learning_rate": 1e-3, "held_back": 0.2,
}  # fmt: skip


def rows(count: int, seed: int = 0) -> dict[str, Any]:
    found = texts(count, seed=seed)
    return {"text": found, "label": [NAMES[len(text) % 2] for text in found]}


def tagged(count: int) -> dict[str, Any]:
    """Sentences with a label for each word: parts with as many texts have other numbers of labels."""
    words = [text.split() for text in texts(count)]
    return {"tokens": words, "ner_tags": [["A" if w == "the" else "B" for w in row] for row in words]}


def write(file: Path, table: dict[str, Any]) -> str:
    lines = (dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(file)


def prepare(folder: Path) -> Path:
    """Returns the folder, filled with bases, fine-tuned models and data."""
    save(tiny("bert", "body"), folder / "base")
    save(tiny("roberta", "body"), folder / "cousin")
    for seed in (1, 2, 3):
        model = tiny("bert", "sequence", seed=seed, labels=2)
        model.config.id2label = dict(enumerate(NAMES))
        model.config.label2id = {name: at for at, name in enumerate(NAMES)}
        save(model, folder / f"seed{seed}")
    write(folder / "train.jsonl", rows(40))
    write(folder / "test.jsonl", rows(12, seed=5))
    (folder / "strange.txt").write_text("\n".join(texts(9, seed=8)) + "\n", encoding="utf-8")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def command(*arguments: Any) -> int:
    return invoke([str(argument) for argument in arguments])


def inputs(folder: Path) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return dict(tokenizer(texts(5, seed=3), padding=True, return_tensors="pt"))


def close(first: Path, second: Path) -> None:
    """The same training, summed up in another order: Adam makes much of gradients that are nearly nothing."""
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    worst = [float((one[name] - tensor).abs().max()) for name, tensor in two.items()]
    assert max(worst) < 2e-3
    assert sum(value < 5e-5 for value in worst) > 0.9 * len(worst)


def still(folder: Path) -> Path:
    """A base without dropout: what is divided, or comes one after another, draws other masks."""
    model = tiny("bert", "body")
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    return save(model, folder)
