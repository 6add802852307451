"""From statistics to the weights of a merge: which number stands before which entry of which parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig

from plait.boundary import reading
from plait.checkpoints.source import check_counts
from plait.checkpoints.topology import Axis, Part, Place, Topology
from plait.checkpoints.topology import topology as find_topology
from plait.errors import MergeError, RecipeError, did_you_mean
from plait.statistics.statistics import Statistics, load_statistics

__all__ = ["MAPPINGS", "NORMALIZATIONS", "Importance", "Statistics", "as_importance", "load_statistics"]

NodeMapping = Literal["paper", "structural"]
Normalization = Literal["none", "mean", "l2", "tensor"]
MAPPINGS: tuple[NodeMapping, ...] = ("paper", "structural")
NORMALIZATIONS: tuple[Normalization, ...] = ("none", "mean", "l2", "tensor")
QUIET = 1e-12
"""Below this share of the greatest mean importance of any tensor, a tensor holds rounding, not information.

Softmax ignores what a key bias adds to all scores (and what the last bias before an answer's span adds to all tokens),
so their gradient is zero; in float32 their Fisher comes out at 1e-13 of the greatest at most, while the least of a
real one (a word table of which the data use little) is above 1e-10. Normalising rounding would make weights of it.
"""


class Importance(Protocol):
    """How much each entry of each parameter matters to one model."""

    def of(self, parameter: str) -> Tensor | None:
        """Returns weights ≥ 0 that broadcast to the parameter; None where nothing is known."""


def as_importance(
    statistics: Statistics,
    topology: Topology | None = None,
    *,
    mapping: NodeMapping = "paper",
    normalize: Normalization = "none",
) -> Importance:
    """Returns the importance that statistics give to parameters.

    Args:
        statistics: of any estimator.
        topology: of the encoder, for mask nodes; default as the statistics record it.
        mapping: how mask nodes become weights of tensors. `paper`: heads on the rows of query and key, neurons on the
            rows of the first FFN projection, a layer's mean on the rest of it, their mean over layers elsewhere.
            `structural`: heads also on the value's rows and the attention output's columns, neurons on the second FFN
            projection's columns.
        normalize: `none`; `mean` or `l2` divide by the mean or the L2 norm over all entries of the body; `tensor`
            divides each tensor by its own mean.
    """
    for word, options, what in ((mapping, MAPPINGS, "mapping"), (normalize, NORMALIZATIONS, "normalization")):
        if word not in options:
            raise RecipeError(f"unknown {what} {word!r}{did_you_mean(word, options)}")
    if statistics.estimator != "mask_nodes":
        return Scaled(statistics, Direct(statistics), normalize)
    return Scaled(
        statistics, Nodes(statistics, topology or recorded_topology(statistics), mapping), normalize
    )


def recorded_topology(statistics: Statistics) -> Topology:
    """Returns the topology of the encoder that statistics were estimated on, as their provenance describes it."""
    if "config" not in statistics.provenance:
        raise MergeError(
            "the importance mask_nodes needs the topology of the encoder: estimate these statistics again"
        )
    settings = dict(statistics.provenance["config"])
    check_counts(settings, Path("these statistics"))
    with reading("the config in the statistics", "is not understood", advice="estimate them again"):
        return find_topology(AutoConfig.for_model(settings.pop("model_type"), **settings))


@dataclass(frozen=True)
class Direct:
    """Statistics that are weights already."""

    statistics: Statistics

    def of(self, parameter: str) -> Tensor | None:
        """Returns the tensor of a parameter."""
        return self.statistics.of(parameter)


@dataclass(frozen=True)
class Nodes:
    """Mask nodes spread over the tensors they belong to."""

    statistics: Statistics
    topology: Topology
    mapping: NodeMapping

    def of(self, parameter: str) -> Tensor | None:
        """Returns a column, a row, or one number; None for the head, which has no nodes."""
        name = self.statistics.relative(parameter)
        if name in self.statistics.provenance.get("head", ()):
            return None
        place = self.topology.place(name)
        if (shape := self.statistics.provenance["shapes"].get(name)) is None:
            return None
        axes = len(shape)
        if place.layer is None:
            return self._everywhere.reshape([1] * axes)
        return self._inside(place, place.layer, axes)

    @cached_property
    def _everywhere(self) -> Tensor:
        """u: the mean over layers of the heads' mean plus the neurons' mean."""
        return (self.statistics.heads.mean(1) + self.statistics.neurons.mean(1)).mean()

    def _inside(self, place: Place, layer: int, axes: int) -> Tensor:
        of_attention = place.part in _ATTENTION
        scores = (self.statistics.heads if of_attention else self.statistics.neurons)[layer]
        mean = scores.mean()
        if place.rows is not None and (self.mapping == "structural" or place.part is not Part.VALUE):
            rows = self._rows(place.part, place.rows, scores, mean)
            return rows if axes == 1 else rows.unsqueeze(1)
        if place.columns is not None and self.mapping == "structural":
            return place.columns.spread(scores).unsqueeze(0)
        return mean.reshape([1] * axes)

    def _rows(self, part: Part, axis: Axis, scores: Tensor, mean: Tensor) -> Tensor:
        rows = axis.spread(scores)
        if part is Part.QUERY_KEY_VALUE and self.mapping == "paper":
            # The last third is the value's, which the paper weighs by the mean of the layer.
            rows[-axis.count * axis.size :] = mean
        return rows


_ATTENTION = {
    Part.QUERY, Part.KEY, Part.VALUE, Part.QUERY_KEY_VALUE, Part.ATTENTION_OUTPUT, Part.ATTENTION_NORM,
}  # fmt: skip


@dataclass(frozen=True)
class Scaled:
    """Another importance, silenced where it is only rounding, and normalised."""

    statistics: Statistics
    source: Direct | Nodes
    how: Normalization

    def of(self, parameter: str) -> Tensor | None:
        """Returns the normalised weights of a parameter."""
        weights = self.source.of(parameter)
        if weights is None:
            return None
        mean = float(weights.mean())
        if mean <= QUIET * self._loudest:
            return torch.zeros_like(weights)
        return weights / (mean if self.how == "tensor" else self._divisor)

    @cached_property
    def _moments(self) -> Mapping[str, tuple[int, float, float]]:
        """Per parameter of the body: entries, mean and mean square of its weights."""
        found = {}
        for name, shape in self.statistics.provenance["shapes"].items():
            if (weights := self.source.of(name)) is not None:
                exact = weights.double()
                found[name] = (math.prod(shape), float(exact.mean()), float(exact.square().mean()))
        return found

    @cached_property
    def _loudest(self) -> float:
        return max((mean for _, mean, _ in self._moments.values()), default=0.0)

    @cached_property
    def _divisor(self) -> float:
        entries = sum(count for count, _, _ in self._moments.values()) or 1
        if self.how == "mean":
            return sum(count * mean for count, mean, _ in self._moments.values()) / entries
        if self.how == "l2":
            return math.sqrt(sum(count * square for count, _, square in self._moments.values()))
        return 1.0
