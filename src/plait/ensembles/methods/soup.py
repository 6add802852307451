"""A model soup: models that started alike, averaged into one."""

from __future__ import annotations

from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Scalar


@METHODS.register(
    "soup",
    build="soup",
    plain=True,
    paper="arXiv:2203.05482",
    when="One ordinary model from M trainings that all succeed.",
)
def soup(task: Scalar) -> Terms:
    """Returns the loss of one of M models, task(z_j, y); what is written has the weights (1/M) Σ_j θ_j  (section 2).

    All start with the head of the first seed and differ in the order of the data and in dropout. Differs from the
    paper in that: there models differ in their hyperparameters too.
    """
    return {"task": task}
