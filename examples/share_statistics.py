"""A merge from statistics instead of data.

Two owners have fine-tuned the same encoder on texts that they may not share. Each of them computes statistics of the
model on these texts and shares a file. With the two models and the two files, anybody can merge as if the texts were
there.

    python examples/share_statistics.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import toy
from safetensors.torch import load_file

import plait

TASKS = ("topic", "mood")
HOW = {"importance": "mask_nodes", "labels": "exact", "examples": 64, "max_length": 32}


def main(place: Path, base: str) -> None:
    """Merges from statistics and from data, and compares the weights."""
    sources, data, statistics = {}, {}, {}
    for task in TASKS:
        # What each owner does: fine-tune, estimate, share the model and the file.
        data[task] = toy.write(place / f"{task}.jsonl", toy.sentences(128), task)
        plait.finetune(base, data[task], place / task, epochs=2, learning_rate=1e-4, max_length=32)
        sources[task] = place / task
        statistics[task] = place / f"{task}.safetensors"
        plait.estimate(place / task, data[task], out=statistics[task], **HOW)
    size = statistics["topic"].stat().st_size
    print(f"a file of statistics has {size / 1e3:.0f} kB; the model {model_size(place / 'topic') / 1e6:.0f} MB")

    shared = plait.merge(
        sources, statistics=statistics, method="fisher", importance="mask_nodes", out=place / "shared"
    )
    central = plait.merge(sources, data=data, method="fisher", out=place / "central", **HOW)

    # The claim: the same weights.
    here, there = (load_file(m.folder / "model.safetensors") for m in (shared, central))
    for name, tensor in there.items():
        torch.testing.assert_close(here[name], tensor)
    # And no text is in the files: a few numbers per attention head and neuron are.
    assert size < model_size(place / "topic") / 100


def model_size(folder: Path) -> int:
    """Returns the bytes of a checkpoint's weights."""
    return (folder / "model.safetensors").stat().st_size


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch), toy.encoder())
