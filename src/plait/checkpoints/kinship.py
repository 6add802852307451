"""Whether checkpoints come from one base: what they record is a hint, what their embeddings say is evidence."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from plait.checkpoints.source import Checkpoint

logger = logging.getLogger("plait")
KIN = 0.5
"""Cosine below which embeddings have no common origin: fine-tuning leaves it near 1, another pretraining near 0."""
_ROWS = 64


def warn_of_bases(sources: Sequence[Checkpoint], base: Checkpoint | None) -> None:
    """Warns when the recorded bases differ; people rename folders, so a record alone stops nobody."""
    recorded = {s.name: s.recorded_base for s in sources if s.recorded_base}
    if len({_tail(name) for name in recorded.values()}) > 1:
        said = ", ".join(f"{name}: {found}" for name, found in recorded.items())
        logger.warning(
            "the sources record different bases (%s); merging them anyway, their weights are akin", said
        )
    elif (
        recorded
        and base is not None
        and _tail(base.origin) not in {_tail(name) for name in recorded.values()}
    ):
        logger.warning(
            "the base given is %s, the sources record %s", base.origin, next(iter(recorded.values()))
        )


def _tail(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()


def base_problems(sources: Sequence[Checkpoint], base: Checkpoint | None) -> list[str]:
    """Returns the pairs whose word embeddings have no common origin, from a sample of rows."""
    everyone = [*sources, base] if base is not None else list(sources)
    samples = {c.name: sample for c in everyone if (sample := _sample(c)) is not None}
    return [
        f"{a} and {b} do not come from one base (cosine of their word embeddings {cosine:.2f}, expected above {KIN}"
        f"{_records(everyone, a, b)}); merge models fine-tuned from the same base"
        for a, b in itertools.combinations(samples, 2)
        if (cosine := _cosine(samples[a], samples[b])) < KIN
    ]


def _records(everyone: Sequence[Checkpoint], a: str, b: str) -> str:
    found = {c.name: c.recorded_base for c in everyone if c.name in {a, b} and c.recorded_base}
    return "".join(f"; {name} records {base}" for name, base in found.items())


def _sample(checkpoint: Checkpoint) -> Tensor | None:
    """Returns some rows of the word embeddings: the parameter with one row per word of the vocabulary."""
    rows = getattr(checkpoint.config, "vocab_size", None)
    for stored in checkpoint.body.values():
        shape = checkpoint.header(stored).shape
        if len(shape) == 2 and shape[0] == rows:
            picked = torch.linspace(0, shape[0] - 1, min(_ROWS, shape[0])).long()
            return checkpoint.read(stored)[picked].to(torch.float64).flatten()
    return None


def _cosine(a: Tensor, b: Tensor) -> float:
    """Returns the cosine; not-a-number (which the engine reports by parameter) and zero vectors count as kin."""
    if a.shape != b.shape or not (a.any() and b.any()):
        return 1.0
    value = float(a @ b / (a.norm() * b.norm()))
    return 1.0 if value != value else value  # noqa: PLR0124
