"""Fine-tunes the teachers of all rows, each on its own labels only; finished ones are skipped.

Run from the repository root, once for each core:

    python experiments/amalgamation/sources.py

Processes that run at once share the work between them, seed by seed, the cheapest rows first. `run.py` makes what it
lacks by itself. The checkpoints go to work-files/ (not kept in git), one JSON per teacher to
results/teachers/ beside this file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the experiments share

import torch
from encoders import encoder
from grid import claimed, waiting, write
from rows import POOLS, RESULTS, ROWS, SEEDS, WORK, Teacher, all_teachers, taught

__all__ = ["claim_of", "claimed", "finished", "folder_of", "make", "waiting", "write"]

EPOCHS = 4
BATCH = 16
LEAST_STEPS = 80  # a teacher of few texts sees them more often


def folder_of(teacher: Teacher, seed: int) -> Path:
    return WORK / "teachers" / f"{teacher.name}-{seed}"


def record_of(teacher: Teacher, seed: int) -> Path:
    return RESULTS / "teachers" / f"{teacher.name}-{seed}.json"


def claim_of(teacher: Teacher, seed: int) -> Path:
    return WORK / "claims" / f"{teacher.name}-{seed}"


def finished(teacher: Teacher, seed: int) -> bool:
    return (folder_of(teacher, seed) / "plait.json").exists() and record_of(teacher, seed).exists()


def make(teacher: Teacher, seed: int, *, precision: str = "bfloat16") -> None:
    """Fine-tunes one teacher; how well it knows its own labels, `run.py` tells."""
    from plait.training import finetune

    data = taught(teacher, seed)
    report = finetune(
        encoder(teacher.encoder),
        data,
        folder_of(teacher, seed),
        labels=teacher.label_names,
        epochs=epochs(len(data)),
        learning_rate=POOLS[teacher.data].rate,
        batch_size=BATCH,
        max_length=POOLS[teacher.data].max_length,
        seed=seed,
        precision=precision,  # type: ignore[arg-type]
        checkpoints=False,
        overwrite=True,
    )
    report |= {"base": teacher.encoder, "labels": list(teacher.label_names)}
    report["data"]["source"] = f"{teacher.data}/train.parquet"
    write(record_of(teacher, seed), report)
    print(teacher.name, seed, report["training_loss"], f"{report['seconds']} s", flush=True)


def epochs(texts: int) -> int:
    """Returns how often a teacher sees its texts: more often where there are few."""
    return max(EPOCHS, round(LEAST_STEPS * BATCH / texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for teacher in all_teachers(tuple(ROWS[name] for name in arguments.rows)):
            with claimed(claim_of(teacher, seed)) as mine:
                if mine and not finished(teacher, seed):
                    make(teacher, seed)


if __name__ == "__main__":
    main()
