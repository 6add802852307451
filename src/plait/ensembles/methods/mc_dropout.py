"""Monte Carlo dropout: one model, asked several times."""

from __future__ import annotations

from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Scalar


@METHODS.register(
    "mc_dropout",
    build="shared",
    lone=True,
    passes=True,
    paper="arXiv:1506.02142",
    when="Uncertainty from one model that is trained as usual, at M passes for each prediction.",
)
def mc_dropout(task: Scalar) -> Terms:
    """Returns the loss of the one model; its members are passes with dropout, attention's too, when it is asked."""
    return {"task": task}
