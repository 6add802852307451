"""The second half of the demonstration: two teachers, each with half of the labels, teach one student all of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger("plait")

TEXTS = 640
"""Unlabelled texts at most."""
SETTINGS: Mapping[str, Any] = {"max_length": 48, "learning_rate": 1e-4, "epochs": 3}
STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "muka": {"passes": 8, "last_layers": 2},
    "vkd": {"objective": "vkd"},
}
"""The students that are compared; both are taught from one store of posteriors."""


def amalgamation(
    folder: Path, base: str, files: Mapping[str, Path], rest: Sequence[str], seed: int
) -> dict[str, Any]:
    """Returns how well two teachers and their students tell all libraries apart.

    Args:
        folder: where data, teachers and students go.
        base: the encoder that teachers and students start from.
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
        finetune(base, rows, teachers[name], seed=seed, overwrite=True, **SETTINGS)
    scores = {f"{name} alone": right(model, files["test"]) for name, model in teachers.items()}
    shares: dict[str, dict[str, float]] = {}
    for name, options in STUDENTS.items():
        logger.info("teaching student %s", name)
        student = amalgamate(
            teachers, texts=texts, student=base, out=folder / "students" / name, store=folder / "posteriors",
            seed=seed, overwrite=True, **{**SETTINGS, "passes": 8, "last_layers": 2, **options},
        )  # fmt: skip
        found = evaluate(student.folder, files["test"]).tasks["model"]
        scores[f"student, {name}"] = found.metrics["accuracy"]
        shares[name] = {
            teacher: about["share"]
            for teacher, about in student.report["who_taught_what"]["teachers"].items()
        }
    return {"texts": len(rest[:TEXTS]), "accuracy": scores, "taught": shares}


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


def right(model: str, file: Path) -> float:
    """Returns the share of rows that a model gives the right label; labels it does not have count as wrong."""
    from plait.api.students import Student

    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = Student(Path(model)).predict([row["text"] for row in rows])
    count = sum(bool(f["label"] == row["label"]) for f, row in zip(found, rows, strict=True))
    return count / len(rows)
