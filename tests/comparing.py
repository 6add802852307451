"""Sources of a comparison, tiny: classifiers from one base, texts and labels that they know by heart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tests.models import save, texts, tiny, tiny_tokenizer


def source(folder: Path, name: str, labels: Sequence[str], *, seed: int, family: str = "bert") -> PreTrainedModel:
    """Returns a classifier with these labels, saved with the base that it records."""
    model = tiny(family, "sequence", seed=seed, labels=len(labels))
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: at for at, label in enumerate(labels)}
    save(model, folder / name)
    (folder / name / "plait.json").write_text(json.dumps({"base": str(folder / f"{family}-base")}))
    return model


def rows(model: PreTrainedModel, file: Path, count: int, *, seed: int, wrong: int = 0) -> Path:
    """Returns a file of texts with the labels that a model gives them, the first so many of them wrong."""
    tokenizer, some = tiny_tokenizer(model.config.model_type), texts(count, seed=seed)
    with torch.no_grad():
        found = model(**tokenizer(some, padding=True, return_tensors="pt")).logits.argmax(-1).tolist()
    size = model.config.num_labels
    told = [(at + 1) % size if i < wrong else at for i, at in enumerate(found)]
    names = model.config.id2label
    lines = [json.dumps({"text": text, "label": names[at]}) for text, at in zip(some, told, strict=True)]
    file.write_text("\n".join(lines) + "\n")
    return file


def world(folder: Path, labels: dict[str, Sequence[str]], *, count: int = 48, family: str = "bert") -> Path:
    """Returns a folder with a base, a source a task, and `NAME.train.jsonl` and `NAME.test.jsonl` of each."""
    folder.mkdir(parents=True, exist_ok=True)
    save(tiny(family, "body", drift=0.0), folder / f"{family}-base")
    for at, (name, own) in enumerate(labels.items(), 1):
        model = source(folder, name, own, seed=at, family=family)
        rows(model, folder / f"{name}.train.jsonl", count, seed=at)
        rows(model, folder / f"{name}.test.jsonl", count, seed=100 + at, wrong=4)
    return folder
