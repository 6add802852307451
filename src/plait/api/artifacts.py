"""What can be done with what lies on disk: load, evaluate, export; and what `inspect` says of all but merges."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from plait.amalgamation.baselines import teacher_scores
from plait.amalgamation.student import Student
from plait.api.language import Given, evaluate_language, harness_tasks, is_language
from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint
from plait.checkpoints.embedders import embedder_of, is_embedder
from plait.comparison.result import Comparison
from plait.data.writing import check_table, write_table
from plait.ensembles.evaluation import saved_scores
from plait.ensembles.export import export_saved
from plait.ensembles.saved import SavedEnsemble
from plait.errors import RecipeError, SourceError, listed
from plait.evaluation import outcome_of, outcome_scores
from plait.evaluation.outcome import RESAMPLES
from plait.evaluation.scores import Evaluation, TaskScores, of_tasks, primary_of
from plait.label_names import told
from plait.merging.export import export_task
from plait.merging.merged import Merged
from plait.merging.scores import pair_scores, scores_of
from plait.processes import one_job, rank
from plait.progress import noted
from plait.reports.record import ARTICLES, Kind, kind_of, report_of
from plait.statistics.importance import Statistics, load_statistics
from plait.teachers import Store, open_store
from plait.teachers.record import read_record

logger = logging.getLogger("plait")


Artifact = Merged | Student | SavedEnsemble | Checkpoint | Statistics | Store | Comparison
"""What lies at a path, opened; `.artifact` says which of them it is."""

OPENERS: dict[Kind | None, Callable[[Path], Artifact]] = {
    "merged": Merged,
    "student": Student,
    "ensemble": SavedEnsemble,
    "one_model": SavedEnsemble,
    "posteriors": open_store,
    "comparison": Comparison,
    "statistics": load_statistics,
}


def open_artifact(
    path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> Artifact:
    """Returns what lies at a path, opened: a merged checkpoint, a student, an ensemble, statistics, posteriors.

    Everything else is an ordinary checkpoint. No weights are read.

    Args:
        path: a folder, a file of statistics, or a Hub id.
        revision: of a Hub id.
        trust_remote_code: whether an ordinary checkpoint may run its own code.

    Raises:
        SourceError: nothing there that Plait understands, or something damaged.
        DataError: posteriors that are damaged or not finished.
    """
    kind = kind_of(path)
    if kind == "members":
        raise SourceError(f"{path} is {ARTICLES[kind]}")
    if kind in OPENERS:
        return OPENERS[kind](Path(path).expanduser())
    return open_checkpoint(path, revision=revision, trust_remote_code=trust_remote_code)


def load(folder: str | Path) -> Any:
    """Returns a merged checkpoint, a student, an ensemble, statistics or posteriors.

    A merged checkpoint has `.tasks`, `.task(name)`, `.predict(texts, task=…)` and `.tokenizer`; a student `.labels`,
    `.report`, `.predict(texts)`, and its transformers model as `.model`. An ensemble, and the one model that some
    methods make of it, is a transformers model; its tokenizer comes from `AutoTokenizer`, as with all of them.

    Raises:
        SourceError: none of them, or a damaged one.
    """
    if kind_of(folder) in (None, "checkpoint", "finetuned"):
        return Merged(folder)  # says what is missing
    found = open_artifact(folder)
    return found.model if isinstance(found, SavedEnsemble) else found


@noted
@one_job()
def evaluate(
    model: str | Path | Merged | SavedEnsemble | Student,
    data: Any = None,
    *,
    sources: bool = True,
    batch_size: int = 32,
    max_length: int | None = None,
    stride: int | None = None,
    tasks: str | Sequence[str] | None = None,
    examples: int | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    predictions: str | Path | None = None,
    out_of_scope: Any = None,
    labels: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Returns scores on labelled data, absolute and relative to each source on the same rows.

    Language models are scored on texts alone: perplexity per token and bits per byte, see docs/evaluating.md.

    Args:
        model: a merged checkpoint, an ensemble, a student, or a plain one (folder, Hub id, or what made it returned).
        data: task -> data (a file, a Dataset, columns); for a model with one task the data alone, or any name -> data
            for a row each and their mean.
        sources: whether to score the sources of a merged checkpoint or the teachers of a student too, where they can
            still be found.
        batch_size: texts at a time.
        max_length: tokens a text is cut at; of a language model, tokens that are read together.
        stride: of a language model, tokens from one window over a long document to the next; default half a window.
        tasks: of a language model, those of lm-evaluation-harness (`hellaswag,piqa`, a list), where it is installed.
        examples: a random subset of this size; default all.
        seed: of the subset and of the resamples.
        resamples: of the bootstrap interval (95 %) around each primary metric; 0 leaves it out.
        predictions: a file to write with every row's text, label and prediction: csv, jsonl or parquet by its suffix.
        out_of_scope: texts that belong to no class, which an ensemble should doubt.
        labels: names of a head's labels in its order, such as `["negative", "positive"]`, where its own are
            placeholders (`LABEL_0`, `0`); task -> names for a merged checkpoint.
        revision: of a Hub id.
        trust_remote_code: whether a checkpoint may run its own code.

    Raises:
        PlaitError: an unknown task, unusable data, labels that the head does not have.
    """
    wanted = harness_tasks(tasks, data)
    if predictions is not None:
        check_table(predictions, "--predictions")
    opened = (
        open_artifact(model, revision=revision, trust_remote_code=trust_remote_code)
        if isinstance(model, str | Path)
        else model
    )
    name = str(model if isinstance(model, str | Path) else model.folder)
    told: dict[str, Any] = {"sources": sources, "batch_size": batch_size, "max_length": max_length}
    given = Given(data, out_of_scope, examples, seed)
    names = label_names(labels)
    if isinstance(opened, SavedEnsemble) and names:
        raise RecipeError("labels (--labels) name those of a merged or plain checkpoint, not of an ensemble")
    check_scope(opened, model, out_of_scope)
    trusted: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if isinstance(opened, Student | Checkpoint) and (names or isinstance(opened, Student)):
        opened = open_checkpoint(opened.folder, **trusted, labels=only(names, model))
    if is_language(opened):
        found = evaluate_language(name, opened, given, wanted, stride=stride, **told, **trusted)
    elif stride is not None or wanted:
        option = "--tasks" if wanted else "--stride"
        raise RecipeError(f"{option} is for language models; {model} is {ARTICLES[opened.artifact]} without their head")
    elif isinstance(opened, SavedEnsemble):
        found = evaluate_ensemble(name, opened, given, **told)
    elif isinstance(opened, Merged):
        called = of_tasks(names, opened.tasks)
        tasks = ("model",) if opened.embeds else opened.tasks
        found = scores_of(opened, given.tables(tasks), labels=called, **told, **trusted)
    elif isinstance(opened, Checkpoint):
        found = evaluate_plain(name, opened, given, **told, **trusted)
    else:
        raise RecipeError(f"{model} holds {ARTICLES[opened.artifact]}, which answers nothing: expected a model")
    found = found.with_intervals(resamples=resamples, seed=seed)
    if predictions is not None and not rank():
        write_table(Path(predictions), found.predictions())
    return found


def check_scope(opened: Artifact, model: Any, out_of_scope: Any) -> None:
    """Raises `RecipeError` where texts of no class are given to something that has no doubts."""
    if out_of_scope is not None and not isinstance(opened, SavedEnsemble):
        raise RecipeError(f"--out-of-scope needs an ensemble (one member will do); {model} is none")


def evaluate_ensemble(
    name: str, saved: SavedEnsemble, given: Given, *, sources: bool, batch_size: int, max_length: int | None
) -> Evaluation:
    """Returns the scores of an ensemble's members together and alone, on each file."""
    strange = None if given.out_of_scope is None else given.read(given.out_of_scope)
    settings: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
    tables = given.tables()
    scored = {task: saved_scores(saved, rows, strange, members=sources, **settings) for task, rows in tables.items()}
    return Evaluation(name, scored, saved.artifact)


def evaluate_plain(
    name: str,
    plain: Checkpoint,
    given: Given,
    *,
    sources: bool,
    batch_size: int,
    max_length: int | None,
    trust_remote_code: bool,
) -> Evaluation:
    """Returns the scores of an ordinary checkpoint on each file, and of the teachers of a student."""
    settings: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
    tables = given.tables()
    if is_embedder(plain):
        model = embedder_of(plain)
        reader = plain.tokenizer()
        return Evaluation(name, {task: pair_scores(model, reader, t, **settings) for task, t in tables.items()})
    primary = primary_of(plain.kind, plain.problem_type)
    network, tokenizer = plain.model(), plain.tokenizer()
    found = {}
    for task, rows in tables.items():
        outcome = outcome_of(network, tokenizer, rows, **settings)
        trusted: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        known = teacher_scores(plain.folder, rows, **settings, **trusted) if sources else {}
        found[task] = TaskScores(outcome_scores(outcome), primary, len(rows), known, outcome=outcome)
    return Evaluation(name, found)


def label_names(labels: Any) -> dict[str | None, tuple[str, ...]]:
    """Returns the names of labels by task; those of the only head under None.

    Raises:
        RecipeError: something else than names.
    """
    by_task = labels if isinstance(labels, Mapping) else {} if labels is None else {None: labels}
    found = {
        task: told(names) if isinstance(names, str) else tuple(names) if isinstance(names, list | tuple) else ()
        for task, names in by_task.items()
    }
    if odd := [str(task or "labels") for task, names in found.items() if not names]:
        raise RecipeError(f"labels of {listed(odd)}: expected names in the head's order, such as negative,positive")
    return found


def only(names: Mapping[str | None, tuple[str, ...]], model: Any) -> tuple[str, ...] | None:
    """Returns the names given for the only head there is.

    Raises:
        RecipeError: names for several.
    """
    if len(names) > 1:
        raise RecipeError(f"{model} is a plain checkpoint with one head: give --labels once")
    return next(iter(names.values()), None)


@noted
def export(
    merged: str | Path | Merged | SavedEnsemble,
    out: str | Path,
    *,
    task: str | None = None,
    member: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Returns the folder written: a checkpoint that `AutoModel…from_pretrained` and `pipeline` read without Plait.

    Args:
        merged: a merged checkpoint, or an ensemble.
        out: the folder to write.
        task: which task of a merged checkpoint; may be left out when there is only one.
        member: which member of an ensemble; by default all of them folded into one model, or
            member 0 (with a warning) where they do not fold.
        overwrite: whether an existing output is replaced.

    Raises:
        SourceError: neither a merged checkpoint nor an ensemble.
        RecipeError: no such task, several and none chosen, or one of an ensemble; no such member.
        OutputError: the output exists.
    """
    source = open_artifact(merged) if isinstance(merged, str | Path) else merged
    if isinstance(source, SavedEnsemble):
        return export_saved(source, Path(out), task, member, overwrite=overwrite)
    if member is not None:
        raise RecipeError(f"--member {member}: {merged} is no ensemble")
    if not isinstance(source, Merged):
        raise SourceError(f"{merged} is not a merged checkpoint but {ARTICLES[source.artifact]}")
    return export_task(source, Path(out), task, overwrite=overwrite)


def inspect_statistics(file: Path) -> dict[str, Any]:
    """Returns saved statistics as plain data: what was estimated, from what, and its shapes."""
    found = load_statistics(file)
    shapes = {name: list(tensor.shape) for name, tensor in found.tensors.items()}
    return {"kind": "statistics", "estimator": found.estimator, **found.facts, "tensors": shapes}


def inspect_ensemble(folder: Path) -> dict[str, Any]:
    """Returns what an ensemble is, how it was made and what it is worth, as plain data."""
    saved = SavedEnsemble(folder)
    config = saved.config
    kept = (
        "parameters",
        "megabytes",
        "forward_equivalents",
        "sources",
        "data",
        "epochs",
        "validation",
        "recipe",
    )
    return {
        "kind": "ensemble",
        "method": saved.method,
        "members": saved.members,
        "separate_models": len(saved.folders) if len(saved.folders) > 1 else None,
        "family": config.encoder.model_type,
        "layers": config.num_hidden_layers,
        "shared_layers": config.shared_layers if len(saved.folders) == 1 else None,
        "head": config.head,
        "labels": list(saved.labels or ()),
        "problem_type": saved.problem if saved.kind == "sequence_classification" else None,
        **{name: saved.report[name] for name in (*kept, "versions") if name in saved.report},
    }


def inspect_checkpoint(origin: str, revision: str | None, *, trust_remote_code: bool) -> dict[str, Any]:
    """Returns what a plain checkpoint's headers and config say."""
    source = open_checkpoint(origin, revision=revision, trust_remote_code=trust_remote_code)
    dtypes = sorted({str(header.dtype).removeprefix("torch.") for header in source.headers.values()})
    return {
        "kind": "checkpoint",
        "architecture": source.architecture,
        "family": source.config.model_type,
        "head": source.kind,
        "labels": list(source.labels or ()),
        "problem_type": source.problem_type,
        "body_parameters": sum(prod(source.header(stored).shape) for stored in source.body.values()),
        "head_parameters": sum(prod(source.header(stored).shape) for stored in source.head.values()),
        "dtypes": dtypes,
        "base": source.recorded_base,
        "digest": source.digest,
        **taught(source.folder),
    }


def taught(folder: Path) -> dict[str, Any]:
    """Returns who taught a student what, or how an ensemble became one model; nothing for other checkpoints."""
    record = report_of(folder)
    if record.get("kind") not in ("student", "ensemble"):
        return {}
    made = ("epochs", "forward_equivalents", "recipe", "versions")
    kept = ("teachers", "averaged", "data", "validation", "who_taught_what", *made)
    return {name: record[name] for name in kept if name in record}


def inspect_store(folder: Path) -> dict[str, Any]:
    """Returns a store of posteriors as plain data, finished or not."""
    record = read_record(folder)
    finished = {t.name: t.name in record.forwards for t in record.teachers}
    if all(finished.values()):
        return describe_store(open_store(folder))
    return {
        "kind": "posteriors, not finished: the command that makes them goes on where it was",
        "texts": record.texts.count,
        "settings": asdict(record.settings),
        "finished": finished,
    }


def describe_store(store: Store) -> dict[str, Any]:
    """Returns a store of posteriors as plain data."""
    cost = {name: round(forwards, 2) for name, forwards in store.cost.teachers.items()}
    return {
        "kind": "posteriors",
        "output": str(store.folder),
        "texts": store.count,
        "skipped": store.skipped,
        "settings": asdict(store.settings),
        "teachers": {t.name: {"model": t.origin, "labels": list(t.labels)} for t in store.teachers},
        "forward_passes_per_text": {**cost, "total": round(store.cost.total, 2)},
        "megabytes": round(sum(f.stat().st_size for f in store.folder.rglob("*.safetensors")) / 1e6, 2),
    }


def inspect_comparison(folder: Path) -> dict[str, Any]:
    """Returns what a comparison found out, as plain data; of one that is not finished, of what it is."""
    record, found = report_of(folder), Comparison(folder)
    told = {"sources": list(record.get("sources", {})), "versions": record.get("versions", {})}
    if not record.get("finished"):
        return {"kind": "comparison, not finished: the command that makes it goes on where it was", **told}
    report = found.report
    return {
        "kind": "comparison",
        **told,
        "tasks": [task["name"] for task in report["tasks"]],
        "candidates": {
            row["id"]: row["status"] if row["mean_relative"] is None else f"{100 * row['mean_relative']:.1f} %"
            for row in report["candidates"]
        },
        "recommended": report["recommended"],
        "best": report["best"],
        "notes": report["notes"],
    }


INSPECTORS: dict[Kind | None, Callable[[Path], dict[str, Any]]] = {
    "statistics": inspect_statistics,
    "ensemble": inspect_ensemble,
    "posteriors": inspect_store,
    "comparison": inspect_comparison,
}
"""How what is neither an ordinary checkpoint nor a merge is looked at."""
