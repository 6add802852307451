"""The first table where its claim was made: an encoder of BERT-base's size and shape, pairs of four tasks, one seed.

    python experiments/merging/mpnet.py FOLDER           # all-mpnet-base-v2, or any other encoder of `transformers`

MPNet-base has BERT-base's 12 layers, 768 dimensions and 12 heads, and fine-tunes like it; its head has the dense layer
that BERT's pooler is, so that nothing of the head is merged. 1,500 examples a task, two epochs at 5e-5; statistics of
128 examples; 200 held-out rows. Results: results/mpnet/.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import run
import sources
import torch

from plait.data import read_examples
from plait.evaluation import evaluate_model
from plait.training import finetune

CHOSEN = ("sst2", "trec", "cola", "mrpc")
RESULTS = sources.RESULTS / "mpnet"
WORK = sources.ROOT / "work-files" / "merging-mpnet"
METHODS = (
    run.Method("average"),
    run.Method("fisher", "mask_nodes", "paper", "none", per="batch"),
    run.Method("fisher", "mask_nodes", "paper", "none"),
    run.Method("fisher", "mask_nodes", "paper", "tensor"),
    run.Method("fisher", "mask_nodes", "structural", "tensor"),
    run.Method("fisher", "diagonal", normalize="tensor"),
    run.Method("ties"),
    run.Method("regmean", options=tuple(run.PUBLISHED.items())),
    run.own("regmean", options=run.REPAIRED),
    run.own("tsv"),
    run.own("actmerge"),
    run.own("actmerge", refine=3),
)


def prepare(base: Path) -> None:
    """Points the scripts of MiniLM's experiment to this encoder."""
    for room in (sources, run):
        room.WORK, room.RESULTS = WORK, RESULTS
        room.default_base = lambda: base
    run.ROWS, run.EXAMPLES = 200, 128


def make(task: sources.Task, seed: int) -> None:
    out, record = sources.folder_of(task.name, seed), RESULTS / "sources" / f"{task.name}-{seed}.json"
    if (out / "plait.json").exists() and record.exists():
        return
    report = finetune(
        sources.default_base(),
        sources.DATA / task.name / "train.parquet",
        out,
        validation=read_examples(sources.DATA / task.name / f"{task.held_out}.parquet", limit=sources.JUDGED),
        score=evaluate_model,
        epochs=2,
        learning_rate=5e-5,
        batch_size=16,
        max_length=task.max_length,
        seed=seed,
        limit=1500,
        precision="bfloat16",
        checkpoints=False,
        overwrite=True,
    )
    report["base"] = sources.default_base().name
    report["data"]["source"] = f"{task.name}/train.parquet"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(report, indent=2) + "\n")
    print(task.name, seed, report["validation"], f"{report['seconds']} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=(0,))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    prepare(arguments.base)
    for seed in arguments.seeds:
        for name in CHOSEN:
            make(replace(run.BY_NAME[name]), seed)
        for tasks in (tuple(sorted(CHOSEN)), *combinations(sorted(CHOSEN), 2)):
            run.run_cell(tasks, seed, METHODS)


if __name__ == "__main__":
    main()
