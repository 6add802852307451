"""From an encoder and labelled data to an ordinary checkpoint with a head of its own."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plait.checkpoints.lineage import lineage
from plait.checkpoints.places import check_apart
from plait.checkpoints.sealed import digest
from plait.checkpoints.tokenizers import keep_tokenizer
from plait.checkpoints.writer import atomic_folder, check_target, writing
from plait.data import Examples, ProblemType, align_labels, batches, encode, length_limit, read_examples
from plait.encoders.heads import Head
from plait.encoders.modes import seeded
from plait.errors import OutputError, RecipeError, did_you_mean
from plait.hub import locate
from plait.reports.cards import finetuned_card
from plait.reports.record import origin_beside, report_of, write_record
from plait.training.heads import check_labelled, check_openable, head_for, open_with, quiet
from plait.training.state import (
    check_accelerate,
    check_state,
    finished_job,
    full_disk,
    is_finished,
    job_key,
    training_state,
)
from plait.training.trainer import Objective, Schedule, train

logger = logging.getLogger("plait")
Scores = Callable[[PreTrainedModel, PreTrainedTokenizerBase, Examples], Mapping[str, float]]


def finetune(
    base: str | Path,
    data: Any,
    out: str | Path,
    *,
    validation: Any = None,
    score: Scores | None = None,
    objective: Objective | None = None,
    epochs: float = 3.0,
    learning_rate: float = 5e-5,
    batch_size: int = 16,
    max_length: int = 128,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    seed: int = 0,
    problem_type: ProblemType | None = None,
    labels: Sequence[str] | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    report_to: str = "none",
    checkpoints: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Fine-tunes an encoder on labelled data, writes an ordinary checkpoint, returns the run's report.

    Args:
        base: A folder or Hub id of any encoder; its head is new unless it has one of the same labels.
        data: Labelled data, as `read_examples` takes it.
        out: Folder of the checkpoint; it appears whole, when training has ended.
        validation: Data that the model is judged on at the end.
        score: Judges, such as `plait.evaluation.evaluate_model`; the mean loss without it.
        objective: What to minimise; the head's own loss by default.
        epochs: How often to see each example.
        learning_rate: The highest rate, reached after the warm-up.
        batch_size: Examples a step.
        max_length: Tokens to keep of each text.
        warmup: Share of the steps in which the rate rises.
        weight_decay: AdamW's.
        seed: Decides head, order, dropout and subset: equal seeds give equal weights.
        problem_type: Overrides what the labels look like (0 and 1 can also be numbers to regress).
        labels: The head's label names in order, instead of those of the data.
        limit: Train on a random subset of this size.
        columns: Column names `text`, `text_pair`, `label`, where they are not found by themselves.
        precision: float32, or bfloat16 mixed precision.
        report_to: A tracker that transformers knows, such as tensorboard.
        checkpoints: Save the state after each epoch beside `out`, for `resume`.
        resume: Go on from that state.
        overwrite: Replace `out` where it exists.
        revision: Branch, tag or commit of a `base` on the Hub.
        trust_remote_code: Run model code that comes with `base`.
        dry_run: Check everything, train and write nothing; the report says what would be trained.

    Raises:
        PlaitError: For data, base or output that cannot be used.
    """
    started, out = time.monotonic(), Path(os.path.realpath(out))
    _check_problem(problem_type)
    check_apart(out, base, data, validation)
    ended = resume and finished_job(out) is not None
    check_target(out, overwrite=overwrite or ended)
    check_accelerate()
    schedule = Schedule(epochs, learning_rate, batch_size, warmup, weight_decay, seed, precision, report_to)
    examples = read_examples(data, limit=limit, seed=seed, **_columns(columns))
    held_out = None if validation is None else read_examples(validation, **_columns(columns))
    head = head_for(examples, labels, problem_type)
    aligned = align_labels(examples, head.names, problem_type=head.problem_type)
    if held_out is not None:
        check_labelled(held_out, "validate")
        align_labels(held_out, head.names, kind=head.kind, problem_type=head.problem_type)
    if dry_run:
        check_openable(base, revision, trust_remote_code)
        return _plan(base, aligned, held_out, head, {**asdict(schedule), "max_length": max_length}, out)
    with (
        writing(out, overwrite=overwrite or ended),
        training_state(out, keep=checkpoints, resume=resume) as state,
        seeded(seed),
        full_disk(out),
    ):
        model, tokenizer = open_with(base, head, trust_remote_code, revision)
        keep = length_limit(tokenizer, model.config, max_length)
        if keep < max_length and keep == tokenizer.model_max_length:
            logger.info("texts are cut at %d tokens, the limit that the tokenizer of %s records", keep, base)
        encoded = encode(
            aligned, tokenizer, max_length=keep, problem_type=head.problem_type, config=model.config
        )
        settings = {**asdict(schedule), "max_length": keep}
        same = {**_identity(base, head), "revision": revision, "data": aligned.fingerprint, **settings}
        if ended and is_finished(out, same):
            return _told(out)
        check_target(out, overwrite=overwrite)
        check_state(state, same)
        options = {"objective": objective, "schedule": schedule, "checkpoints": checkpoints, "resume": resume}
        log = train(model, encoded, state, **options)  # type: ignore[arg-type]
        report = _report(base, aligned, settings, log)
        if held_out is not None:
            judge = score or partial(_loss, head=head, max_length=keep)
            report["validation"] = dict(judge(model.eval(), tokenizer, held_out))
        report["seconds"] = round(time.monotonic() - started, 1)
        # Whoever opens the checkpoint later cuts texts where training did.
        tokenizer.model_max_length = min(tokenizer.model_max_length, keep)
        start = lineage(base, locate(base, revision))
        told = {"losses": _losses(log), "job": job_key(same), "head": head.kind, "start": start}
        record = {**report, "base": origin_beside(str(base), out), **told}
        _write(model, tokenizer, out, record, overwrite)
        shutil.rmtree(state, ignore_errors=True)
    return report


def _identity(base: str | Path, head: Head) -> dict[str, Any]:
    """Returns what must be the same of model and head for a training to be resumed."""
    folder = Path(base).expanduser()
    weights = sorted(p for p in folder.glob("*") if p.suffix in {".safetensors", ".bin"}) if folder.is_dir() else []
    return {
        "base": str(base),
        "weights": {file.name: digest(file) for file in weights},
        "labels": None if head.names is None else list(head.names),
        "problem_type": head.problem_type,
    }


def _told(out: Path) -> dict[str, Any]:
    """Returns the report of a checkpoint that was written before."""
    own = ("kind", "losses", "job")
    return {name: value for name, value in report_of(out).items() if name not in own}


def _check_problem(problem_type: str | None) -> None:
    known = get_args(ProblemType)
    if problem_type is not None and problem_type not in known:
        raise RecipeError(f"unknown problem_type {problem_type!r}{did_you_mean(problem_type, known)}")


def _plan(  # noqa: PLR0917 - all that a training needs
    base: str | Path,
    examples: Examples,
    held_out: Examples | None,
    head: Head,
    options: Mapping[str, Any],
    out: Path,
) -> dict[str, Any]:
    steps = math.ceil(math.ceil(len(examples) / options["batch_size"]) * options["epochs"])
    return {
        "base": str(base),
        "head": head.kind,
        "labels": list(head.names or ()),
        "problem_type": head.problem_type,
        "examples": len(examples),
        "validation": None if held_out is None else len(held_out),
        "steps": steps,
        "options": dict(options),
        "output": str(out),
    }


def _loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    head: Head,
    max_length: int,
) -> dict[str, float]:
    """Returns the mean loss of the model's own head, for those who bring no scores of their own."""
    aligned = align_labels(examples, head.names, problem_type=head.problem_type)
    told: dict[str, Any] = {
        "problem_type": head.problem_type,
        "config": model.config,
        "max_length": max_length,
    }
    with torch.inference_mode():
        pairs = [
            (
                model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).loss,
                len(batch["input_ids"]),
            )
            for batch in batches(aligned, tokenizer, **told)
        ]
    total = sum(float(loss) * count for loss, count in pairs)
    return {"loss": total / max(1, sum(count for _, count in pairs))}


def _report(
    base: str | Path, examples: Examples, options: Mapping[str, Any], log: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    last = next((entry["loss"] for entry in reversed(log) if "loss" in entry), None)
    return {
        "base": str(base),
        "data": {"source": examples.source, "examples": len(examples), "fingerprint": examples.fingerprint},
        "options": dict(options),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "training_loss": None if last is None else float(f"{last:.4g}"),
        "steps": int(log[-1]["step"]) if log else 0,
    }


def _losses(log: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    kept = ("loss", "epoch", "step")
    return [{name: entry[name] for name in kept} for entry in log if "loss" in entry]


def _columns(columns: Mapping[str, str] | None) -> dict[str, Any]:
    return dict(columns or {})


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    report: Mapping[str, Any],
    overwrite: bool,
) -> None:
    try:
        with atomic_folder(out, overwrite=overwrite) as folder, quiet():
            model.save_pretrained(folder)
            keep_tokenizer(tokenizer, folder)
            write_record(folder, "finetuned", report)
            (folder / "README.md").write_text(finetuned_card(report, out.name), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error}") from error
