"""A greedy soup: of models that started alike, those are averaged that help on the validation data."""

from __future__ import annotations

from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Scalar


@METHODS.register(
    "greedy_soup",
    build="soup",
    plain=True,
    greedy=True,
    paper="arXiv:2203.05482",
    when="One ordinary model from M trainings, where some may fail.",
)
def greedy_soup(task: Scalar) -> Terms:
    """Returns the loss of one of M models, task(z_j, y), which are then tried in the order of their validation scores.

    S ← S ∪ {j} where the mean of θ over S ∪ {j} scores no lower than that over S  (recipe 1)

    All start with the head of the first seed. Needs rows that are held back.
    """
    return {"task": task}
