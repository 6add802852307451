"""The second half of the demonstration: two teachers, each with half of the labels, teach one student all of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger("plait")

TEXTS = 480
"""Unlabelled texts at most."""
SETTINGS: Mapping[str, Any] = {"max_length": 48, "learning_rate": 1e-4, "epochs": 3}
STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "gate mahalanobis (the default)": {},
    "gate muka": {"gate": "muka"},
}
"""The students that are compared; all are taught from one store of posteriors."""
SCORING: Mapping[str, Any] = {"passes": 8, "last_layers": 2}


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
    from plait.api import amalgamate, evaluate, finetune, posteriors

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
    store = folder / "posteriors"
    settings = {"max_length": SETTINGS["max_length"], "seed": seed}
    posteriors(teachers, texts=texts, out=store, overwrite=True, **SCORING, **settings)
    scores: dict[str, float] = {}
    shares: dict[str, dict[str, float]] = {}
    for name, options in STUDENTS.items():
        logger.info("teaching student %s", name)
        student = amalgamate(
            teachers, texts=texts, student=base, out=folder / "students" / name.split()[1], store=store, seed=seed,
            overwrite=True, **{**SETTINGS, **options},
        )  # fmt: skip
        found = evaluate(student.folder, files["test"], sources=not scores).tasks["model"]
        scores |= {teacher: metrics["accuracy"] for teacher, metrics in found.sources.items()}
        scores[f"student, {name}"] = found.metrics["accuracy"]
        about = student.report["who_taught_what"]["teachers"]
        shares[name] = {teacher: of.get("share", of["mean_weight"]) for teacher, of in about.items()}
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
