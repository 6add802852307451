"""From an encoder and labelled data to an ordinary checkpoint with a head of its own."""

from __future__ import annotations

import json
import logging
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from plait.data import Examples, Kind, ProblemType, align_labels, batches, encode, length_limit, read_examples
from plait.data.labels import names_in
from plait.errors import DataError, OutputError, PlaitError, SourceError, listed
from plait.training.loop import Objective, Schedule, train

Scores = Callable[[PreTrainedModel, PreTrainedTokenizerBase, Examples], Mapping[str, float]]
HEADS = {
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
}


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
    trust_remote_code: bool = False,
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
        trust_remote_code: Run model code that comes with `base`.

    Raises:
        PlaitError: For data, base or output that cannot be used.
    """
    started, out = time.monotonic(), Path(out)
    _check_output(out, overwrite)
    _check_accelerate()
    schedule = Schedule(epochs, learning_rate, batch_size, warmup, weight_decay, seed, precision, report_to)
    examples = read_examples(data, limit=limit, seed=seed, **_columns(columns))
    held_out = None if validation is None else read_examples(validation, **_columns(columns))
    with _state(out, keep=checkpoints, resume=resume) as state, _seeded(seed):
        head = _head(examples, labels, problem_type)
        model, tokenizer = _open(base, head, trust_remote_code)
        aligned = align_labels(examples, head.names, problem_type=head.problem_type)
        keep = min(max_length, length_limit(tokenizer, model.config))
        encoded = encode(
            aligned, tokenizer, max_length=keep, problem_type=head.problem_type, config=model.config
        )
        settings = {**asdict(schedule), "max_length": keep}
        _check_state(state, {"base": str(base), "data": aligned.fingerprint, **settings})
        options = {"objective": objective, "schedule": schedule, "checkpoints": checkpoints, "resume": resume}
        log = train(model, encoded, state, **options)  # type: ignore[arg-type]
    report = _report(base, aligned, settings, log)
    if held_out is not None:
        judge = score or partial(_loss, head=head, max_length=keep)
        report["validation"] = dict(judge(model.eval(), tokenizer, held_out))
    report["seconds"] = round(time.monotonic() - started, 1)
    _write(model, tokenizer, out, report, overwrite)
    shutil.rmtree(state, ignore_errors=True)
    return report


@contextmanager
def _state(out: Path, *, keep: bool, resume: bool) -> Iterator[Path]:
    """Yields the folder of the training's state, empty unless it is resumed, removed unless it is to be kept."""
    folder = out.parent / f".{out.name}.training"
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _check_state(folder: Path, run: Mapping[str, Any]) -> None:
    """Notes what is trained beside its state; refuses to go on from the state of something else."""
    record = folder / "run.json"
    found = json.loads(record.read_text()) if record.is_file() else dict(run)
    if changed := [
        f"{name} was {found.get(name)}, is {run[name]}" for name in run if found.get(name) != run[name]
    ]:
        raise PlaitError(
            f"{folder} was left by another run ({listed(changed)}); repeat its options, or start again without resume"
        )
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(dict(run)) + "\n")


@dataclass(frozen=True)
class _Head:
    """What the new head has to be."""

    kind: Kind
    names: tuple[str, ...] | None
    problem_type: ProblemType | None

    def settings(self) -> dict[str, Any]:
        """Returns the configuration entries of this head."""
        if self.kind == "question_answering":
            return {}
        names = self.names or ("LABEL_0",)
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        problem = {"problem_type": self.problem_type} if self.kind == "sequence_classification" else {}
        return {"num_labels": len(names), **labels, **problem}

    def differs(self, config: PreTrainedConfig, model: PreTrainedModel) -> bool:
        """Says whether a base with this configuration has a head of this class for other labels."""
        if type(model).__name__ not in (config.architectures or ()) or self.kind == "question_answering":
            return False
        found = tuple(str(name) for name in (config.id2label or {}).values())
        return found != (self.names or found[:1])


def _head(examples: Examples, labels: Sequence[str] | None, problem_type: ProblemType | None) -> _Head:
    if examples.labels is None:
        raise DataError(f"{examples.source}: has no labels; expected a label column to train on")
    if not len(examples):
        raise DataError(f"{examples.source}: no examples; expected at least one to train on")
    if examples.kind != "sequence_classification":
        return _Head(examples.kind, tuple(labels) if labels else names_in(examples), None)
    problem = problem_type or examples.problem_type
    names = None if problem == "regression" else tuple(labels) if labels else names_in(examples)
    return _Head(examples.kind, names, problem)


def _open(
    base: str | Path, head: _Head, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns the encoder of `base` with the head, and its tokenizer."""
    trust = {"trust_remote_code": trust_remote_code}
    loading = {"dtype": torch.float32, "ignore_mismatched_sizes": True, **trust}
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, **trust)
        if head.kind == "token_classification" and getattr(tokenizer, "add_prefix_space", None) is False:
            # Words that come one by one are not continuations of the word before.
            tokenizer = AutoTokenizer.from_pretrained(base, add_prefix_space=True, **trust)
        old = AutoConfig.from_pretrained(base, **trust)
        config = AutoConfig.from_pretrained(base, **trust, **head.settings())
        with _quiet():
            model = HEADS[head.kind].from_pretrained(base, config=config, **loading)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{base}: cannot be opened as a model to fine-tune: {reason}") from error
    return (_renewed(model) if head.differs(old, model) else model), tokenizer


def _renewed(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the model with a newly drawn head: an old one of equal shape would be for other labels."""
    fresh: PreTrainedModel = type(model)(model.config).float()
    fresh.base_model.load_state_dict(model.base_model.state_dict())
    return fresh


def _loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    head: _Head,
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
            (model(**batch).loss, len(batch["input_ids"])) for batch in batches(aligned, tokenizer, **told)
        ]
    total = sum(float(loss) * count for loss, count in pairs)
    return {"loss": total / max(1, sum(count for _, count in pairs))}


def _report(
    base: str | Path, examples: Examples, options: Mapping[str, Any], log: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    kept = ("loss", "epoch", "step")
    return {
        "base": str(base),
        "data": {"source": examples.source, "examples": len(examples), "fingerprint": examples.fingerprint},
        "options": dict(options),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "losses": [{name: entry[name] for name in kept} for entry in log if "loss" in entry],
    }


def _columns(columns: Mapping[str, str] | None) -> dict[str, Any]:
    return dict(columns or {})


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    report: Mapping[str, Any],
    overwrite: bool,
) -> None:
    """Writes the checkpoint beside `out` and renames it last."""
    beside = out.parent / f".{out.name}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    with _quiet():
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
    (beside / "plait.json").write_text(json.dumps({"made_by": "finetune", **report}, indent=2) + "\n")
    if overwrite and out.exists():
        shutil.rmtree(out)
    beside.rename(out)


def _check_output(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; expected a folder to write to")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise OutputError(f"{out}: exists; choose another folder, or pass overwrite (--overwrite)")
    out.parent.mkdir(parents=True, exist_ok=True)


def _check_accelerate() -> None:
    from importlib.util import find_spec

    if find_spec("accelerate") is None:
        raise PlaitError(
            "fine-tuning needs accelerate, which is not installed; run: pip install 'plait[train]'"
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds every generator inside and gives the caller's states back afterwards."""
    # transformers.set_seed seeds numpy's global generator too, so that one is restored as well.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            transformers.set_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences bars, and the table of new parameters: a new head is what fine-tuning asks for."""
    log = logging.getLogger("transformers")
    level, bars = log.level, transformers_logging.is_progress_bar_enabled()
    log.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        log.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
