"""The third part of the demonstration: an ensemble whose members share one encoder, beside the model trained alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger("plait")

MEMBERS = 4
PRIVATE = 2
"""Last layers in which members see different states while they are trained; all are shared."""
SHOWN = ("accuracy", "calibration_error")
"""Scores that the demonstration shows of a model alone and of all members together."""


def ensembling(
    folder: Path, base: str, files: Mapping[str, Path], alone: str, *, epochs: float, seed: int
) -> dict[str, Any]:
    """Returns what an ensemble scores and takes, beside one model trained on the same rows.

    Args:
        folder: where the ensemble goes.
        base: the encoder that all members start from.
        files: training and test file.
        alone: the model trained on the same rows, as long and at the same rate.
        epochs: of fine-tuning.
        seed: of every random choice.
    """
    from transformers import AutoConfig

    from plait.api import ensemble, evaluate

    depth = int(AutoConfig.from_pretrained(base, trust_remote_code=False).num_hidden_layers)
    logger.info("training an ensemble of %d members", MEMBERS)
    made = ensemble(
        base,
        data=files["train"],
        out=folder,
        members=MEMBERS,
        replicate_at=max(0, depth - PRIVATE),
        held_back=0,
        epochs=epochs,
        learning_rate=1e-4,
        max_length=64,
        seed=seed,
        overwrite=True,
    )
    found = {
        name: evaluate(model, files["test"]).tasks["model"].metrics
        for name, model in (("one model", alone), (f"{MEMBERS} members, one encoder", made.folder))
    }
    return {
        "scores": {name: {key: metrics[key] for key in SHOWN} for name, metrics in found.items()},
        "parameters": made.report["parameters"],
        "forward_equivalents": made.report["forward_equivalents"],
    }
