"""Merges the sources in every pair and all six, by every method, and scores the result: one JSON per set and seed.

Run from the repository root after (or, with --wait, while) `sources.py` makes the sources:

    for i in 0 1; do python experiments/merging/run.py --worker $i/2 --wait & done

Finished cells are skipped; in a cell only the methods that it lacks are computed. Statistics are estimated once per
source and kept in work-files/. Rows of the first table merge poolers too, as Plait 0.1 did (`--first`); those of the
second keep each task's own.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from sources import DATA, RESULTS, SEEDS, TASKS, WORK, Task, default_base, folder_of
from torch import Tensor, nn
from transformers import PreTrainedModel

from plait.checkpoints.checkpoint import open_checkpoint
from plait.data import Encoded, Examples, align_labels, batches, collate, encode, plan, read_examples
from plait.encoders.topology import topology
from plait.evaluation import head_labels, predict_encoded, score
from plait.merging.chunks import InMemory
from plait.merging.engine import combine
from plait.merging.forward import ForwardMerge
from plait.merging.merged import with_modules
from plait.merging.refinement import Refinement, SourceTexts, teaching
from plait.merging.refinement.answers import ask
from plait.merging.refinement.distillation import distill
from plait.merging.refinement.heads import first_layer, fold, rows, states_of
from plait.merging.refinement.model import Head, MultiTask
from plait.merging.rule import RULES
from plait.statistics.estimate import estimate_statistics
from plait.statistics.importance import (
    MAPPINGS,
    NORMALIZATIONS,
    Importance,
    Statistics,
    as_importance,
    load_statistics,
)
from plait.training.trainer import Schedule

ROWS = 300
EXAMPLES = 256
BY_NAME = {task.name: task for task in TASKS}
SETS = (tuple(sorted(BY_NAME)), *combinations(sorted(BY_NAME), 2))
ESTIMATORS = ("mask_nodes", "diagonal", "block_traces", "gram")


@dataclass(frozen=True)
class Method:
    """A rule with its defaults or some options, what importance it is told, and what follows it."""

    rule: str
    estimator: str | None = None
    mapping: Literal["paper", "structural"] = "paper"
    normalize: Literal["none", "mean", "l2", "tensor"] = "none"
    per: Literal["example", "batch"] = "example"
    own_pooler: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    forward: bool = False
    refine: int = 0
    texts: int = EXAMPLES
    on: Literal["logits", "hidden"] = "logits"
    align: str = ""
    align_ridge: float = 1.0
    align_first: bool = False
    rate: float = 1e-4

    @property
    def name(self) -> str:
        """Returns the method as the table names it."""
        if self.own_pooler:
            parts = [self.rule, *(f"{name} {value}" for name, value in self.options)]
            parts += ["forward"] * self.forward + [f"refine {self.refine}"] * bool(self.refine)
            parts += ["on hidden"] * (self.on == "hidden")
            parts += [f"{self.texts} texts"] * (self.texts != EXAMPLES) + [f"heads {self.align}"] * bool(self.align)
            parts += [f"strength {self.align_ridge:g}"] * (self.align_ridge != 1.0) + ["before"] * self.align_first
            parts += [f"rate {self.rate:g}"] * (self.rate != 1e-4)
            return "own pooler: " + ", ".join(parts)
        if self.rule != "fisher":
            return self.rule
        mapping = f" {self.mapping}" if self.estimator == "mask_nodes" else ""
        per = " per batch" if self.per == "batch" else ""
        return f"fisher {self.estimator}{mapping} {self.normalize}{per}"


def own(rule: str, *, options: dict[str, Any] | None = None, **more: Any) -> Method:
    return Method(rule, own_pooler=True, options=tuple((options or {}).items()), **more)


PUBLISHED = {"alpha": 0.9, "ridge": 1e-6, "scale_grams": "none"}
"""RegMean as Plait 0.1 had it: the paper's, and a ridge against rounding."""
REPAIRED = {"scale_grams": "trace", "alpha": 1.0, "ridge": 0.01}
CORE = (
    own("average"),
    own("ties"),
    own("actmerge"),
    own("actmerge", align="ridge"),
    own("regmean", options=REPAIRED),
    own("regmean", options=REPAIRED, align="ridge"),
)
"""For every set of tasks."""
WIDE = (
    own("actmerge", refine=3),
    own("regmean", options=REPAIRED, refine=3),
    own("actmerge", refine=3, on="hidden"),
    own("average", refine=3),
    own("actmerge", align="shift"),
    own("actmerge", refine=3, align="ridge"),
    own("actmerge", refine=3, align="ridge", align_first=True),
    own("actmerge", refine=3, align="ridge", align_first=True, rate=3e-5),
    *(own("actmerge", align="ridge", align_ridge=strength) for strength in (0.1, 10.0)),
    own("regmean", options=PUBLISHED),
    own("regmean", options=REPAIRED, forward=True),
    *(own(rule) for rule in ("wudi", "ace", "tsv", "iso", "svc", "cart", "task_arithmetic", "dare")),
    *(own(rule) for rule in ("breadcrumbs", "della", "model_stock", "karcher", "lines")),
    *(own("actmerge", options={"ridge": ridge}) for ridge in (0.01, 1.0)),
    own("calibrate", options={"ridge": 0.3}),
    own("calibrate", options={"ridge": 0.3}, refine=3),
    own("actmerge", refine=3, texts=1024),
    own("calibrate", options={"ridge": 0.05}),
    own("calibrate", options={"ridge": 0.05, "own": 0.5}),
)
"""For all six tasks."""
METHODS = (
    Method("average"),
    *(
        Method("fisher", "mask_nodes", mapping, normalize)
        for mapping in MAPPINGS
        for normalize in NORMALIZATIONS
    ),
    *(Method("fisher", "diagonal", normalize=normalize) for normalize in NORMALIZATIONS),
    *(Method("fisher", "block_traces", normalize=normalize) for normalize in ("none", "tensor")),
    Method("regmean", options=tuple(PUBLISHED.items())),
    Method("ties"),
    Method("task_arithmetic"),
)


@dataclass(frozen=True)
class Source:
    """One fine-tuned model: its body as tensors, itself for its head, and its held-out rows, tokenised once."""

    body: InMemory
    model: PreTrainedModel
    examples: Examples
    encoded: Encoded


@cache
def source(task: str, seed: int) -> Source:
    checkpoint = open_checkpoint(folder_of(task, seed), name=task)
    model, tokenizer = checkpoint.model(), checkpoint.tokenizer()
    rows = read_examples(DATA / task / f"{BY_NAME[task].held_out}.parquet", limit=ROWS)
    examples = align_labels(rows, head_labels(model))
    encoded = encode(
        examples, tokenizer, max_length=BY_NAME[task].max_length, config=model.config, labels=False
    )
    return Source(held(task, checkpoint), model, examples, encoded)


@cache
def base() -> InMemory:
    return held("base", open_checkpoint(default_base()))


def held(name: str, checkpoint: Any) -> InMemory:
    return InMemory(
        name, {parameter: checkpoint.read(stored).clone() for parameter, stored in checkpoint.body.items()}
    )


@cache
def statistics(
    task: str, seed: int, estimator: str, per: Literal["example", "batch"] = "example"
) -> Statistics:
    """Returns a source's statistics on its own training data, estimated once and kept on disk."""
    batched = "-batch" if per == "batch" else ""
    file = WORK / "statistics" / f"{task}-{seed}-{estimator}{batched}.safetensors"
    if file.exists():
        return load_statistics(file)
    checkpoint = open_checkpoint(folder_of(task, seed), name=task)
    model, tokenizer = checkpoint.model(), checkpoint.tokenizer()
    rows = read_examples(DATA / task / "train.parquet", limit=EXAMPLES, seed=seed)
    examples = align_labels(rows, head_labels(model))
    start = time.monotonic()
    inputs = batches(
        examples, tokenizer, max_length=BY_NAME[task].max_length, config=model.config, batch_size=16
    )
    found = estimate_statistics(model, inputs, estimator=estimator, per=per, provenance={"task": task, "seed": seed})
    found.save(file)
    print(f"{task} {seed} {estimator}: {time.monotonic() - start:.1f} s", flush=True)
    return found


@cache
def importance(task: str, seed: int, method: Method) -> Importance:
    table = topology(source(task, seed).model.config)
    found = statistics(task, seed, method.estimator or "", method.per)
    return as_importance(found, table, mapping=method.mapping, normalize=method.normalize)


def merged(method: Method, tasks: tuple[str, ...], seed: int) -> dict[str, torch.Tensor]:
    """Returns the merged body by the engine that `plait merge` uses."""
    sources = [source(task, seed) for task in tasks]
    rule = RULES[method.rule]
    settings: dict[str, Any] = {}
    if "base" in rule.inputs:
        settings["base"] = base()
    if "grams" in rule.inputs:
        settings["grams"] = [statistics(task, seed, "gram") for task in tasks]
    if "importances" in rule.inputs:
        settings["importances"] = [importance(task, seed, method) for task in tasks]
    names = sorted(sources[0].body.tensors)
    settings |= {"options": dict(method.options), "topology": topology(sources[0].model.config)}
    return dict(combine([one.body for one in sources], names, rule, **settings))


def scores(task: str, seed: int, body: dict[str, torch.Tensor] | None) -> dict[str, float]:
    """Returns the scores of a source, with another body in its place where one is given."""
    one = source(task, seed)
    with torch.no_grad():
        for name, parameter in one.model.base_model.named_parameters():
            parameter.copy_((body or one.body.tensors)[name])
    # Half precision predicts the same labels here (600 of 600 on two sources) in less than half the time.
    with torch.autocast("cpu", torch.bfloat16):
        logits = predict_encoded(one.model, one.encoded, batch_size=32)["logits"]
    return score(logits, one.examples)


@cache
def own_scores(task: str, seed: int) -> dict[str, float]:
    return scores(task, seed, None)


def run_method(method: Method, tasks: tuple[str, ...], seed: int) -> dict[str, Any]:
    start = time.monotonic()
    body = ordered(method, tasks, seed) if method.forward or method.rule == "calibrate" else merged(method, tasks, seed)
    merging = time.monotonic() - start
    report: dict[str, Any] = {}
    models: dict[str, PreTrainedModel] = {}
    if method.refine:
        body, models, report = refined(method, body, tasks, seed)
    refining = time.monotonic() - start - merging
    if method.align_first:
        found = {task: judged(model, source(task, seed)) for task, model in models.items()}
    else:
        found = {task: scored(method, task, seed, body) for task in tasks}
    relative = {task: found[task]["accuracy"] / own_scores(task, seed)["accuracy"] for task in tasks}
    mean = sum(relative.values()) / len(relative)
    return {
        "relative": mean,
        "relative_by_task": relative,
        "tasks": found,
        "merge_seconds": round(merging, 2),
        **({"refine_seconds": round(refining, 2), **report} if method.refine else {}),
    }


def scored(method: Method, task: str, seed: int, body: dict[str, Tensor]) -> dict[str, float]:
    """Returns a task's scores with the merged body, its own pooler and a head fitted to it where the method says so."""
    if not method.own_pooler:
        return scores(task, seed, body)
    mine = source(task, seed).body.tensors
    kept = {name: mine[name] if name.startswith("pooler.") else tensor for name, tensor in body.items()}
    if not method.align or method.align_first:
        return scores(task, seed, kept)
    one = source(task, seed)
    model = copy.deepcopy(one.model).float()
    model.base_model.load_state_dict(kept, strict=False)
    fit_head(method, model, task, seed)
    return judged(model, one)


def judged(model: PreTrainedModel, one: Source) -> dict[str, float]:
    with torch.autocast("cpu", torch.bfloat16):
        return score(predict_encoded(model, one.encoded, batch_size=32)["logits"], one.examples)


def fit_head(method: Method, model: PreTrainedModel, task: str, seed: int) -> None:
    """Fits a model's head to its encoder, on the source's texts."""
    head, given = Head(model, own_pooler=True), texts(task, seed, method.texts)
    if method.align_first:
        given = teaching(given, Refinement(Schedule(seed=seed)))
    target = ask(given, on="hidden", max_length=None, own_pooler=True)
    network = MultiTask(model.base_model, [head], [0], own_pooler=True).eval()
    layer, states = first_layer(network, target), states_of(network, target)
    fold(layer, states, torch.cat([rows(said) for said in target.said]), method.align, method.align_ridge)


@cache
def texts(task: str, seed: int, count: int) -> SourceTexts:
    """Returns a source with unlabelled texts of its training data."""
    checkpoint = open_checkpoint(folder_of(task, seed), name=task)
    examples = read_examples(DATA / task / "train.parquet", limit=count, seed=seed)
    tokenizer = checkpoint.tokenizer()
    tokenizer.model_max_length = BY_NAME[task].max_length
    return SourceTexts(
        task, task, lambda: checkpoint.model(dtype=torch.float32), lambda: tokenizer, examples.unlabelled()
    )


def ordered(method: Method, tasks: tuple[str, ...], seed: int) -> dict[str, Tensor]:
    """Returns the body merged in forward order."""
    sources = [source(task, seed) for task in tasks]
    prepared = []
    for task, one in zip(tasks, sources, strict=True):
        said = texts(task, seed, method.texts)
        encoded = encode(said.examples, said.tokenizer(), config=one.model.config, labels=False)
        prepared.append(
            [collate([encoded.features[i] for i in part], encoded.padding) for part in plan(encoded, 32)]
        )
    weights, options = torch.ones(len(tasks)), dict(method.options)
    job = ForwardMerge(
        [one.body for one in sources], RULES[method.rule], weights, options, prepared
    )
    body = copy.deepcopy(sources[0].model.base_model).float().eval()
    donor = copy.deepcopy(body) if job.calibrating else None
    return {**sources[0].body.tensors, **job.run(body, donor)}


def refined(
    method: Method, body: dict[str, Tensor], tasks: tuple[str, ...], seed: int
) -> tuple[dict[str, Tensor], dict[str, PreTrainedModel], dict[str, Any]]:
    """Returns the body after refinement, the models around it, and what that reports."""
    encoder = copy.deepcopy(source(tasks[0], seed).model.base_model).float()
    encoder.load_state_dict(body, strict=False)
    models = {}
    for task in tasks:
        model = copy.deepcopy(source(task, seed).model).float()
        model.base_model.load_state_dict(source(task, seed).body.tensors, strict=False)
        own_body: nn.Module = model.base_model
        setattr(model, model.base_model_prefix, with_modules(encoder, own_body, {"pooler"}))
        models[task] = model
        if method.align_first:
            fit_head(method, model, task, seed)
    schedule = Schedule(method.refine, method.rate, 16, weight_decay=0.0, seed=seed, precision="bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        learned = [texts(task, seed, method.texts) for task in tasks]
        found = distill(encoder, models, learned, Refinement(schedule, on=method.on), state=Path(folder))
    kept = {name: value.detach() for name, value in encoder.state_dict().items() if name in body}
    return {**body, **kept}, models, {name: found[name] for name in ("agreement", "passes")}


def run_cell(tasks: tuple[str, ...], seed: int, methods: Sequence[Method]) -> None:
    name = "all" if len(tasks) == len(TASKS) else "+".join(tasks)
    file = RESULTS / "cells" / f"{name}-{seed}.json"
    cell = json.loads(file.read_text()) if file.exists() else {}
    for method in methods:
        if method.name not in cell.get("methods", {}):
            cell = run_one(file, cell, method, tasks, seed)


def run_one(
    file: Path, cell: dict[str, Any], method: Method, tasks: tuple[str, ...], seed: int
) -> dict[str, Any]:
    """Returns a cell with one method more, which is on disk by then."""
    found = {**cell.get("methods", {}), method.name: run_method(method, tasks, seed)}
    cell = {
        "set": list(tasks),
        "seed": seed,
        "settings": {"rows": ROWS, "examples": EXAMPLES, "labels": "given", "evaluation": "bfloat16"},
        "sources": {task: own_scores(task, seed) for task in tasks},
        "methods": found,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(cell, indent=1) + "\n")
    partial.rename(file)
    print(f"{file.stem}: {method.name} {found[method.name]['relative']:.3f}", flush=True)
    return cell


def wait_for(task: Task, seed: int) -> None:
    while not (RESULTS / "sources" / f"{task.name}-{seed}.json").exists():
        time.sleep(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", default="0/1", help="i/n: take every n-th cell, starting at i")
    parser.add_argument("--wait", action="store_true", help="wait for sources that are still being made")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--sets", choices=("all", "pairs"), help="all six tasks, or pairs; default both")
    parser.add_argument("--first", action="store_true", help="the first table: poolers merged too")
    arguments = parser.parse_args()
    worker, workers = map(int, arguments.worker.split("/"))
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for seed in arguments.seeds:
        for task in TASKS:
            if arguments.wait:
                wait_for(task, seed)
        for task in TASKS[worker::workers] if arguments.first else ():
            for estimator in ESTIMATORS:
                statistics(task.name, seed, estimator)
        for tasks in SETS[(worker + seed) % workers :: workers]:
            whole = len(tasks) == len(TASKS)
            if arguments.sets is None or whole == (arguments.sets == "all"):
                chosen = METHODS if arguments.first else (*CORE, *WIDE) if whole else CORE
                run_cell(tasks, seed, chosen)
        for cached in (source, statistics, importance, own_scores, texts):
            cached.cache_clear()


if __name__ == "__main__":
    main()
