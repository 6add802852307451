"""Statistics of a model on disk, with their provenance, and the weights of a merge that they give."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from plait.boundary import parse_json, reading, validated
from plait.checkpoints.checkpoint import check_counts
from plait.checkpoints.output import one_writer, whole_file
from plait.encoders.experts import expert_part, fused_name
from plait.encoders.families import Part
from plait.encoders.topology import CROSS, Axis, Place, Topology
from plait.encoders.topology import topology as find_topology
from plait.errors import MergeError, OutputError, RecipeError, SourceError, did_you_mean, listed
from plait.tensors import HeadScores, NeuronScores, checksum

METADATA = "plait"
DESCRIPTION = frozenset({"prefix", "shapes", "head", "config"})
"""What provenance says of the model for later steps rather than for readers."""
FORMAT = 1
PATIENCE = 10.0
"""Seconds to wait for another run that is writing the same statistics."""
AGAIN = "estimate them again"


@dataclass(frozen=True)
class Statistics:
    """What an estimator found, and from what: `provenance` is JSON (estimator, options, sources, examples).

    Tensors go by body-relative parameter name, those of the head by their full name; `mask_nodes` holds `heads` [L, h]
    and `neurons` [L, I] instead, and `groups` [L, g] where heads share keys and values.
    """

    artifact: ClassVar = "statistics"
    estimator: str
    tensors: Mapping[str, Tensor]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def of(self, parameter: str) -> Tensor | None:
        """Returns the weights of a parameter, named with or without the prefix of the body; None when there are none.

        Mask nodes are spread over the tensors they belong to by the mapping `paper`; `as_importance` offers others.
        """
        if self.estimator != "mask_nodes":
            name = self.relative(parameter)
            fused = fused_name(name)
            whole = None if fused is None else self.tensors.get(fused)
            return self.tensors.get(name) if whole is None else expert_part(whole, name)

        return as_importance(self).of(parameter)

    @property
    def facts(self) -> dict[str, Any]:
        """Returns the provenance that readers want: estimator, options, examples, digests of weights and data."""
        return {name: value for name, value in self.provenance.items() if name not in DESCRIPTION}

    def relative(self, parameter: str) -> str:
        """Returns a parameter's name without the prefix of the body."""
        prefix = self.provenance.get("prefix")
        return parameter.removeprefix(f"{prefix}.") if prefix else parameter

    @property
    def heads(self) -> HeadScores:
        """The Fisher of the attention heads, layer by layer."""
        return self.tensors["heads"]

    @property
    def neurons(self) -> NeuronScores:
        """The Fisher of the FFN neurons, layer by layer."""
        return self.tensors["neurons"]

    def save(self, path: str | Path) -> Path:
        """Returns the path written: a temporary sibling first, renamed when complete."""
        path = Path(path)
        first, aliases = _without_repeats(self.tensors)
        record = {
            "format": FORMAT, "estimator": self.estimator, "provenance": dict(self.provenance), "aliases": aliases,
            "checksum": checksum(first),
        }  # fmt: skip
        _write(path, first, {METADATA: json.dumps(record)})
        return path


def _without_repeats(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns each distinct tensor once, and which names repeat another: three projections share one Gram matrix."""
    owners: dict[int, str] = {}
    aliases = {
        name: owners[id(value)]
        for name, value in tensors.items()
        if owners.setdefault(id(value), name) != name
    }
    return {name: tensors[name].contiguous() for name in tensors if name not in aliases}, aliases


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_writer(path, patience=PATIENCE), whole_file(path) as partial:
            save_file(tensors, partial, metadata)
    except (OSError, SafetensorError) as problem:
        raise OutputError(f"cannot write statistics to {path}: {problem}") from problem


class _Provenance(BaseModel):
    """What later steps read of where statistics come from; the rest is for people."""

    model_config = ConfigDict(extra="allow")

    prefix: str | None = None
    shapes: dict[str, tuple[NonNegativeInt, ...]] = Field(default_factory=dict)
    head: tuple[str, ...] = ()
    config: dict[str, Any] = Field(default_factory=dict)


class _Record(BaseModel):
    """The record in a file of statistics."""

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    estimator: str
    provenance: _Provenance = _Provenance()
    aliases: dict[str, str] = Field(default_factory=dict)
    checksum: str | None = None


def load_statistics(path: str | Path) -> Statistics:
    """Returns statistics saved by `Statistics.save`; raises `SourceError` for any other, damaged or changed file."""
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"no statistics at {path}; `plait estimate` writes them")
    with reading(path, "is not a readable safetensors file"), safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA, "{}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = parse_json(text, path, advice=AGAIN)
    if not isinstance(content, dict) or "estimator" not in content:
        raise SourceError(
            f"{path} holds tensors but no statistics of plait; write them with `plait estimate`"
        )
    record = validated(_Record, content, path, advice=AGAIN)
    # Files of before have no checksum; what else is wrong with their values shows below.
    if record.checksum is not None and record.checksum != checksum(tensors):
        raise SourceError(f"{path}: its content is not what was written; {AGAIN}")
    if lost := sorted({owner for owner in record.aliases.values() if owner not in tensors}):
        raise SourceError(f"{path}: is damaged: lacks {listed(lost, 5)}; {AGAIN}")
    _check_values(path, record.estimator, tensors)
    tensors |= {name: tensors[owner] for name, owner in record.aliases.items()}
    return Statistics(record.estimator, tensors, content.get("provenance", {}))


def _check_values(path: Path, estimator: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises `SourceError` for what no estimator gives: values that are not finite, squares below zero."""
    wrong = [name for name, tensor in tensors.items() if _is_wrong(tensor, gram=estimator == "gram")]
    if wrong:
        raise SourceError(f"{path}: {listed(wrong, 5)} negative, NaN or Inf, or of no matrix's shape; {AGAIN}")
    if estimator == "mask_nodes" and not (
        {"heads", "neurons"} <= tensors.keys() and tensors["heads"].dim() == tensors["neurons"].dim() == 2
    ):
        raise SourceError(f"{path}: has no scores of heads and neurons by layer; {AGAIN}")


def _is_wrong(tensor: Tensor, *, gram: bool) -> bool:
    if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
        return True
    if gram and (tensor.dim() != 2 or tensor.shape[0] != tensor.shape[1]):
        return True
    return bool(((tensor.diagonal() if gram else tensor) < 0).any())


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


@runtime_checkable
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
            rows of the first FFN projection, a layer's mean on the rest of it, their mean over layers elsewhere. Heads
            that share key rows (grouped queries) weigh them together, as one mask on the group does.
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
        return self._inside(place, self.topology.row(place), axes)

    @cached_property
    def _everywhere(self) -> Tensor:
        """u: the mean over layers of the heads' mean plus the neurons' mean."""
        return self.statistics.heads.mean() + self.statistics.neurons.mean()

    def _inside(self, place: Place, row: int, axes: int) -> Tensor:
        of_attention = place.part in _ATTENTION
        scores = (self.statistics.heads if of_attention else self.statistics.neurons)[row]
        mean = scores.mean()
        if place.outputs is not None and (self.mapping == "structural" or place.part not in _VALUES):
            given = self._given(place.part, place.outputs, self._of_nodes(place.outputs, scores, row), mean)
            return given if axes == 1 else given.unsqueeze(0 if place.transposed else 1)
        if place.inputs is not None and self.mapping == "structural":
            taken = place.inputs.spread(scores)
            return taken.unsqueeze(1 if place.transposed else 0)
        return mean.reshape([1] * axes)

    def _of_nodes(self, axis: Axis, scores: Tensor, row: int) -> Tensor:
        """Returns the scores of an axis's nodes: those of heads, or of the groups that share key and value."""
        return self.statistics.tensors["groups"][row] if axis.node == "group" else scores

    def _given(self, part: Part, axis: Axis, scores: Tensor, mean: Tensor) -> Tensor:
        rows = axis.spread(scores)
        if part is Part.QUERY_KEY_VALUE and self.mapping == "paper":
            # The last third is the value's, which the paper weighs by the mean of the layer.
            rows[-axis.count * axis.size :] = mean
        return rows


_ATTENTION = {
    Part.QUERY, Part.KEY, Part.VALUE, Part.QUERY_KEY_VALUE, Part.ATTENTION_OUTPUT, Part.ATTENTION_NORM, Part.RELATIVE,
    *CROSS,
}  # fmt: skip
_VALUES = {Part.VALUE, Part.CROSS_VALUE}


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
