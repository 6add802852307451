"""What a candidate costs beside its scores: parameters, bytes, seconds per text; and how far it can be trusted."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.headers import read_safetensors_header
from plait.data import Examples
from plait.evaluation.metrics import BINS, calibration_error
from plait.evaluation.outcome import Outcome

ALONE, BATCH, ROUNDS = 15, 32, 3
"""Texts that are timed one by one, texts of a batch, and how often a batch is timed."""


def size_of(folder: Path) -> tuple[int, int]:
    """Returns parameters and bytes of the weights in a folder; a file with several names counts once."""
    every = sorted(folder.rglob("*.safetensors"))
    files = list({(about.st_dev, about.st_ino): file for file in every if (about := file.stat())}.values())
    shapes = [header.shape for file in files for header in read_safetensors_header(file).values()]
    return sum(map(prod, shapes)), sum(file.stat().st_size for file in files)


def size_of_sources(sources: Sequence[Checkpoint]) -> tuple[int, int]:
    """Returns parameters and bytes of all sources together, without what is no part of them."""
    headers = [s.header(stored) for s in sources for stored in (*s.body.values(), *s.head.values())]
    return sum(prod(h.shape) for h in headers), sum(h.nbytes for h in headers)


def latency(answer: Callable[[Examples], Any], rows: Examples) -> dict[str, float]:
    """Returns median seconds per text, answered alone and in batches of 32, tokenisation included.

    Args:
        answer: what answers rows, in one batch.
        rows: to take texts from; they are repeated where there are few.
    """
    texts = rows.unlabelled()
    some = texts.select([at % len(texts) for at in range(BATCH)])
    answer(some.select([0]))
    one = [_timed(answer, some.select([at])) for at in range(ALONE)]
    several = [_timed(answer, some) / BATCH for _ in range(ROUNDS)]
    return {"1": median(one), "32": median(several)}


def _timed(answer: Callable[[Examples], Any], rows: Examples) -> float:
    start = time.perf_counter()
    answer(rows)
    return time.perf_counter() - start


def calibration(outcome: Outcome) -> dict[str, Any] | None:
    """Returns the calibration error and its bins; None where answers are no single classes."""
    if outcome.what != "single_label_classification" or outcome.logits is None:
        return None
    chances = torch.stack(list(outcome.logits)).double().softmax(-1).numpy()
    truth = np.asarray(outcome.examples.labels)
    sure, right = chances.max(-1), (chances.argmax(-1) == truth).astype(float)
    bin_of = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    bins = [
        {"confidence": float(sure[rows].mean()), "accuracy": float(right[rows].mean()), "count": int(rows.sum())}
        for at in range(BINS)
        if (rows := bin_of == at).any()
    ]
    return {"ece": calibration_error(chances, truth), "bins": bins}


def machine() -> Mapping[str, Any]:
    """Returns what decides timings."""
    import transformers

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
