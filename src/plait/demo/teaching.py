"""The second half of the demonstration: two teachers, each with half of the labels, teach one student all of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger("plait")

TEXTS = 900
"""Unlabelled texts at most."""
SETTINGS: Mapping[str, Any] = {"max_length": 48, "learning_rate": 1e-4, "epochs": 3}
STUDENT: Mapping[str, Any] = {**SETTINGS, "student": "merged", "epochs": 2, "batch_size": 8}
"""Few texts in small batches: a student needs steps more than it needs epochs. It starts from the merged teachers."""


def amalgamation(
    folder: Path, base: str, files: Mapping[str, Path], rest: Sequence[str], seed: int
) -> dict[str, Any]:
    """Returns how well two teachers and their student tell all libraries apart.

    Args:
        folder: where data, teachers and student go.
        base: the encoder that the teachers start from.
        files: training and test file of the task `library`.
        rest: texts that neither file holds; what they belong to is not looked at.
        seed: of every random choice.
    """
    from plait.api import amalgamate, evaluate, finetune

    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    halves = split_labels(files["train"], data)
    texts = data / "unlabelled.txt"
    texts.write_text("\n".join(rest[:TEXTS]) + "\n", encoding="utf-8")
    teachers = {}
    for name, rows in halves.items():
        logger.info("fine-tuning teacher %s", name)
        teachers[name] = str(folder / "teachers" / name)
        finetune(base, rows, teachers[name], seed=seed, checkpoints=False, overwrite=True, **SETTINGS)
    logger.info("teaching the student")
    student = amalgamate(teachers, texts=texts, out=folder / "student", seed=seed, overwrite=True, **STUDENT)
    found = evaluate(student.folder, files["test"]).tasks["model"]
    scores = {teacher: metrics["accuracy"] for teacher, metrics in found.sources.items()}
    scores["the student"] = found.metrics["accuracy"]
    about = student.report["who_taught_what"]["teachers"]
    return {
        "texts": len(rest[:TEXTS]),
        "accuracy": scores,
        "taught": {teacher: of["share"] for teacher, of in about.items()},
    }


def split_labels(file: Path, folder: Path) -> dict[str, Path]:
    """Returns two files with the rows of half of the labels each."""
    lines = file.read_text(encoding="utf-8").splitlines()
    labels = sorted({json.loads(line)["label"] for line in lines})
    middle = len(labels) // 2
    files = {}
    for name, known in (("first", set(labels[:middle])), ("second", set(labels[middle:]))):
        files[name] = folder / f"{name}.train.jsonl"
        kept = [line for line in lines if json.loads(line)["label"] in known]
        files[name].write_text("\n".join(kept) + "\n", encoding="utf-8")
    return files
