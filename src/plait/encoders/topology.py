"""From a parameter to its layer, its part, and the axes along which heads or neurons lie."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig

from plait.encoders.families import FAMILIES, Family, Part
from plait.errors import MergeError, did_you_mean, listed


@dataclass(frozen=True)
class Axis:
    """An axis of a parameter whose entries belong to mask nodes: heads of `size` entries, neurons of one.

    `blocks` says how often the run of all nodes repeats: three times in a fused query-key-value projection,
    twice in a gated first feed-forward projection, where neuron j owns the rows j and count + j.
    """

    node: Literal["head", "neuron"]
    count: int
    size: int = 1
    blocks: int = 1

    @property
    def length(self) -> int:
        """Returns the axis's length: nodes x entries per node x blocks."""
        return self.count * self.size * self.blocks

    def spread(self, scores: Tensor) -> Tensor:
        """Returns one number per entry of the axis, given one per node."""
        return scores.repeat_interleave(self.size).repeat(self.blocks)

    def owners(self) -> Tensor:
        """Returns for each entry of the axis the index of its node."""
        return self.spread(torch.arange(self.count))


@dataclass(frozen=True)
class Place:
    """Where a parameter belongs; rows are its first axis, columns its second, None where no node owns any."""

    layer: int | None
    part: Part
    rows: Axis | None = None
    columns: Axis | None = None


@dataclass(frozen=True)
class Topology:
    """The shape of one encoder; `layers` counts distinct parameter layers (ALBERT applies one many times)."""

    model_type: str
    family: Family
    layers: int
    heads: int
    head_dim: int
    neurons: int
    inner: int = 1

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.family.layer).replace(r"\{\}", r"(\d+)") + r"\.(.+)")

    def place(self, parameter: str) -> Place:
        """Returns layer, part and node axes of a body-relative parameter name."""
        place = self._find(parameter)
        if place is None:
            raise _unknown(self.model_type, [parameter])
        return place

    def check(self, parameters: Iterable[str]) -> None:
        """Raises one error that lists every parameter without a place."""
        unknown = [name for name in parameters if self._find(name) is None]
        if unknown:
            raise _unknown(self.model_type, unknown)

    def _find(self, parameter: str) -> Place | None:
        found = self._pattern.fullmatch(parameter)
        module, _, leaf = (found[found.re.groups] if found else parameter).rpartition(".")
        part = (self.family.inside if found else self.family.outside).get(module)
        layer = self._layer(found) if found else None
        if part is None or leaf not in {"weight", "bias"} or (layer is not None and layer >= self.layers):
            return None
        return Place(layer, part, self._rows(part), self._columns(part) if leaf == "weight" else None)

    def _layer(self, found: re.Match[str]) -> int:
        *outer, last = (int(group) for group in found.groups()[:-1])
        return sum(outer) * self.inner + last if last < self.inner or not outer else self.layers

    def _rows(self, part: Part) -> Axis | None:
        if part in {Part.QUERY, Part.KEY, Part.VALUE}:
            return Axis("head", self.heads, self.head_dim)
        if part is Part.QUERY_KEY_VALUE:
            return Axis("head", self.heads, self.head_dim, blocks=3)
        if part is Part.FFN_IN:
            return Axis("neuron", self.neurons, blocks=2 if self.family.gated else 1)
        return None

    def _columns(self, part: Part) -> Axis | None:
        if part is Part.ATTENTION_OUTPUT:
            return Axis("head", self.heads, self.head_dim)
        return Axis("neuron", self.neurons) if part is Part.FFN_OUT else None

    def attention_output(self, layer: int) -> str:
        """Returns the body-relative path of the Linear whose input carries a layer's head nodes."""
        return self._module(layer, Part.ATTENTION_OUTPUT)

    def ffn_output(self, layer: int) -> str:
        """Returns the body-relative path of the Linear whose input carries a layer's neuron nodes."""
        return self._module(layer, Part.FFN_OUT)

    def _module(self, layer: int, part: Part) -> str:
        if not 0 <= layer < self.layers:
            raise IndexError(f"layer {layer} of {self.layers}")
        module = next(name for name, found in self.family.inside.items() if found is part)
        nested = self.family.layer.count("{}") == 2
        indices = divmod(layer, self.inner) if nested else (layer,)
        return f"{self.family.layer.format(*indices)}.{module}"


def _unknown(model_type: str, parameters: list[str]) -> MergeError:
    return MergeError(
        f"{model_type}: no place known for {listed(parameters)}; methods that weigh heads, neurons or layers "
        "cannot treat them, method `average` still can"
    )


def topology(config: PretrainedConfig) -> Topology:
    """Returns the topology of an encoder's configuration."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise MergeError(
            f"no topology for encoders of type {config.model_type!r}"
            f"{did_you_mean(config.model_type, FAMILIES)}; method `average` still works"
        )
    heads = config.num_attention_heads
    inner = getattr(config, "inner_group_num", 1)
    nested = family.layer.count("{}") == 2
    return Topology(
        config.model_type,
        family,
        layers=config.num_hidden_groups * inner if nested else config.num_hidden_layers,
        heads=heads,
        head_dim=getattr(config, "attention_head_size", None) or config.hidden_size // heads,
        neurons=config.hidden_dim if config.model_type == "distilbert" else config.intermediate_size,
        inner=inner,
    )


def topology_of(config: PretrainedConfig) -> Topology | None:
    """Returns the topology of an encoder's configuration, None for a family without a table."""
    return topology(config) if config.model_type in FAMILIES else None


def pooler_parameters(config: PretrainedConfig, parameters: Iterable[str]) -> tuple[str, ...]:
    """Returns those body-relative names that belong to the pooler; none for a family without a table."""
    table = topology_of(config)
    places = () if table is None else ((name, table._find(name)) for name in parameters)
    return tuple(name for name, place in places if place is not None and place.part is Part.POOLER)


__all__ = [
    "FAMILIES",
    "Axis",
    "Part",
    "Place",
    "Topology",
    "pooler_parameters",
    "topology",
    "topology_of",
]
