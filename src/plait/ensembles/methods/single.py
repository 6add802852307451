"""One model, fine-tuned as always."""

from __future__ import annotations

from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Scalar


@METHODS.register(
    "single",
    build="shared",
    lone=True,
    when="Baseline: one model.",
)
def single(task: Scalar) -> Terms:
    """Returns the loss of the one model, task(z, y)."""
    return {"task": task}
