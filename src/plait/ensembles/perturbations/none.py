"""No perturbation: the members differ by their heads alone."""

from __future__ import annotations

from plait.ensembles.perturbation import PERTURBATIONS, Place
from plait.ensembles.shapes import Hidden


@PERTURBATIONS.register(
    "none",
    place=Place.NONE,
    when="The encoder's own dropout and different heads suffice.",
)
def none(hidden: Hidden) -> Hidden:
    """Returns the hidden states as they are."""
    return hidden
