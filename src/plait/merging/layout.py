"""Which parameters are the linear weights of layers, and how deep each lies; apart from job.py, as a fact of models.

The topology table says so where it knows the family, and also which weights are stored as [in, out] (GPT-2's `Conv1D`):
rules see those turned round. Elsewhere names and shapes do: a layer is what has a number in its name, and a linear
weight a matrix in it that is no embedding. Its axes are taken for [out, in].
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from plait.encoders.families import Part
from plait.encoders.topology import Place, Topology
from plait.errors import MergeError

NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.)")
LOOKED_UP = re.compile(r"embed|relative|norm|(^|\.)wte|(^|\.)wpe")
"""Tables that are indexed instead of multiplied, and norms."""
BEFORE = re.compile(r"embed|wte|wpe|shared|token|position|patch|relative")
"""What comes before the first layer; anything else outside the layers comes after the last."""


class Layout:
    """Answers for the parameters of one merge."""

    def __init__(self, names: Sequence[str], table: Topology | None = None) -> None:
        """Counts the layers of each run of numbered modules."""
        self._table = table
        self._last: dict[str, int] = {}
        for run, number in filter(None, map(numbered, names)):
            self._last[run] = max(number, self._last.get(run, 0))

    def is_linear(self, name: str, shape: Sequence[int]) -> bool:
        """Returns whether a parameter is the weight, [out, in], of a linear map inside a layer."""
        if len(shape) != 2 or not name.endswith("weight"):
            return False
        place = self._place(name)
        if place is not None:
            return place.layer is not None
        return numbered(name) is not None and not LOOKED_UP.search(name.lower())

    def is_transposed(self, name: str) -> bool:
        """Returns whether a linear weight is stored as [in, out], as GPT-2's `Conv1D` does."""
        place = self._place(name)
        return place is not None and place.transposed

    def depth(self, name: str) -> float:
        """Returns 0 for the first layer and what comes before, 1 for the last and what comes after.

        One layer alone is the last.
        """
        place = self._place(name)
        if place is not None and self._table is not None:
            return _outside(name, place) if place.layer is None else _share(place.layer, self._table.layers - 1)
        found = numbered(name)
        if found is None:
            return 0.0 if BEFORE.search(name.lower()) else 1.0
        run, number = found
        return _share(number, self._last.get(run, 0))

    def _place(self, name: str) -> Place | None:
        if self._table is None:
            return None
        try:
            return self._table.place(name)
        except MergeError:
            return None


def numbered(name: str) -> tuple[str, int] | None:
    """Returns the run of modules that a parameter's layer is one of, and its number there; None outside layers."""
    found = NUMBER.search(name)
    return None if found is None else (name[: found.start(1)], int(found.group(1)))


def _share(layer: int, last: int) -> float:
    return layer / last if last > 0 else 1.0


def _outside(name: str, place: Place) -> float:
    # The other norms of the table are those of relative positions, but for ModernBERT's after the last layer.
    after = place.part in {Part.POOLER, Part.FINAL_NORM, Part.LANGUAGE_HEAD}
    return 1.0 if after or (place.part is Part.OTHER_NORM and name.startswith("final")) else 0.0
