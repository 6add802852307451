"""Members over one encoder that nothing holds together."""

from __future__ import annotations

from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Scalar


@METHODS.register(
    "shared",
    build="shared",
    implied={"alpha": 0},
    paper="arXiv:2204.06625",
    when="Baseline of camero: no regulariser.",
)
def shared(task: Scalar) -> Terms:
    """Returns the members' losses alone, (1/M) Σ_j task(z_j, y): CAMERO with α = 0."""
    return {"task": task}
