"""Stochastic weight averaging: the epochs of one training, averaged into one model."""

from __future__ import annotations

from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Scalar


@METHODS.register(
    "swa",
    build="path",
    plain=True,
    lone=True,
    limits={"share": (0, 1)},
    paper="arXiv:1803.05407",
    when="One ordinary model from one training.",
)
def swa(task: Scalar, *, share: float = 0.5) -> Terms:  # noqa: ARG001 (read by whoever trains the model)
    """Returns the loss of the one model; what is written has the mean of its weights after the last epochs  (alg. 1).

    Differs from the paper in the learning rate, which goes on falling instead of staying high or going in cycles.

    Args:
        task: Its loss.
        share: The last epochs that are averaged, as a share of all; at least the last one.
    """
    return {"task": task}
