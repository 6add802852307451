"""CAMERO: perturbed members over one encoder, held together by a regulariser."""

from __future__ import annotations

from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Scalar


@METHODS.register(
    "camero",
    build="shared",
    paper="arXiv:2204.06625",
    when="Start here: M members for the price of one, in training and prediction.",
)
def camero(task: Scalar, regulariser: Scalar) -> Terms:
    """Returns the members' losses and what keeps them consistent.

    (1/M) Σ_j task(z_j, y) + α R  (eq. 5)

    Each member sees the hidden states perturbed in its own way; R is the mean symmetric divergence from the ensemble
    (`consistency: ensemble`) or over pairs of members (`pairwise`).
    """
    return {"task": task, "consistency": regulariser}
