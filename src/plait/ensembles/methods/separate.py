"""The standard ensemble: models that know nothing of each other."""

from __future__ import annotations

from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Scalar


@METHODS.register(
    "separate",
    build="separate",
    paper="arXiv:1612.01474",
    when="The most accurate ensemble, if you can afford M models and M passes.",
)
def separate(task: Scalar) -> Terms:
    """Returns the loss of one of M models, task(z_j, y): each has its own head, order of the data and masks.

    Differs from the paper in starting all of them from one pretrained encoder, and without adversarial training.
    """
    return {"task": task}
