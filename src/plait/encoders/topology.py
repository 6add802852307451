"""From a parameter to its layer, its part, and the axes along which heads or neurons lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig

from plait.encoders.decoder_families import DECODERS, MIXTURES
from plait.encoders.experts import fused_name
from plait.encoders.families import FAMILIES, Family, Part
from plait.encoders.vision_families import GATED_DINOV2, VISION, dinov2_neurons
from plait.errors import MergeError, did_you_mean, listed

Node = Literal["head", "group", "neuron", "expert"]


@dataclass(frozen=True)
class Axis:
    """An axis of a parameter whose entries belong to nodes: heads of `size` entries, neurons of one.

    A `group` is what several query heads share: rows of key and value. `blocks` says how often the run of all nodes
    repeats: three times in a fused query-key-value projection, twice in a gated first feed-forward projection, where
    neuron j owns the rows j and count + j.
    """

    node: Node
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
    """Where a parameter belongs; rows are its first axis, columns its second, None where no node owns any.

    A weight that is `transposed` is stored [in, out]: what it gives lies along its columns.
    """

    layer: int | None
    part: Part
    rows: Axis | None = None
    columns: Axis | None = None
    transposed: bool = False

    @property
    def outputs(self) -> Axis | None:
        """Returns the nodes along what a parameter gives."""
        return self.columns if self.transposed else self.rows

    @property
    def inputs(self) -> Axis | None:
        """Returns the nodes along what a weight takes."""
        return self.rows if self.transposed else self.columns


@dataclass(frozen=True)
class Topology:
    """The shape of one model; `layers` counts distinct parameter layers (ALBERT applies one many times).

    Attributes:
        model_type: transformers' name of the family.
        family: its table.
        layers: of all stacks together, the first stack's first.
        heads: query heads of a layer.
        head_dim: entries of one.
        neurons: of a feed-forward layer; 0 where they are known by expert alone.
        inner: layers of a group (ALBERT).
        groups: sets of query heads that share key and value rows.
        lower: layers of the first stack.
        experts: of a mixture.
    """

    model_type: str
    family: Family
    layers: int
    heads: int
    head_dim: int
    neurons: int
    inner: int = 1
    groups: int = 0
    lower: int = 0
    experts: int = 0

    def __post_init__(self) -> None:
        """Fills in what most families have: a group per head, one stack."""
        object.__setattr__(self, "groups", self.groups or self.heads)
        object.__setattr__(self, "lower", self.lower or self.layers)

    @property
    def attentions(self) -> int:
        """Returns how many attention blocks have heads: one a layer, two in a decoder that reads an encoder."""
        return self.layers + (self.layers - self.lower)

    @property
    def mixture(self) -> bool:
        """Returns whether feed-forward layers are mixtures of experts, whose neurons have no nodes."""
        return self.experts > 0

    @cached_property
    def _patterns(self) -> tuple[tuple[re.Pattern[str], Mapping[str, Part]], ...]:
        return tuple(
            (re.compile(re.escape(layer).replace(r"\{\}", r"(\d+)") + r"\.(.+)"), inside)
            for layer, inside in self.family.stacks
        )

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

    def row(self, place: Place) -> int:
        """Returns the row of the heads' (or neurons') scores that belongs to a place in a layer.

        Heads that look at another stack come behind all that look at their own.
        """
        assert place.layer is not None
        return self.layers + place.layer - self.lower if place.part in CROSS else place.layer

    def _find(self, parameter: str) -> Place | None:
        for stack, (pattern, inside) in enumerate(self._patterns):
            if found := pattern.fullmatch(parameter):
                layer = self._layer(found, stack)
                return None if layer is None else self._placed(found[found.re.groups], inside, layer)
        return self._placed(parameter, self.family.outside, None)

    def _placed(self, name: str, table: Mapping[str, Part], layer: int | None) -> Place | None:
        if table.get(fused_name(name) or "") is Part.EXPERTS:
            return Place(layer, Part.EXPERTS)
        if (fused := table.get(name)) is not None:
            return Place(layer, fused, self._outputs(fused))
        module, _, leaf = name.rpartition(".")
        part = table.get(module)
        if part is None or leaf not in {"weight", "bias"}:
            return None
        given, taken = self._outputs(part), self._inputs(part) if leaf == "weight" else None
        turned = self.family.transposed and part in LINEAR and leaf == "weight"
        return Place(layer, part, *((taken, given) if turned else (given, taken)), turned)

    def _layer(self, found: re.Match[str], stack: int) -> int | None:
        *outer, last = (int(group) for group in found.groups()[:-1])
        if outer:
            layer = outer[0] * self.inner + last
            return layer if last < self.inner and layer < self.layers else None
        first, stop = (0, self.lower) if stack == 0 else (self.lower, self.layers)
        return first + last if first + last < stop else None

    def _outputs(self, part: Part) -> Axis | None:
        """Returns the nodes along what a part gives."""
        if part in {Part.QUERY, Part.CROSS_QUERY}:
            return Axis("head", self.heads, self.head_dim)
        if part in KEYS_AND_VALUES:
            return Axis("head" if self.groups == self.heads else "group", self.groups, self.head_dim)
        if part is Part.QUERY_KEY_VALUE:
            return Axis("head", self.heads, self.head_dim, blocks=3)
        if part is Part.FFN_IN and self.neurons:
            return Axis("neuron", self.neurons, blocks=2 if self.family.gated else 1)
        return Axis("expert", self.experts) if part is Part.EXPERTS else None

    def _inputs(self, part: Part) -> Axis | None:
        """Returns the nodes along what a part takes."""
        if part in {Part.ATTENTION_OUTPUT, Part.CROSS_OUTPUT}:
            return Axis("head", self.heads, self.head_dim)
        return Axis("neuron", self.neurons) if part is Part.FFN_OUT and self.neurons else None

    def attention_output(self, layer: int) -> str:
        """Returns the body-relative path of the linear layer whose input carries a layer's head nodes."""
        return self._module(layer, Part.ATTENTION_OUTPUT)

    def attention_outputs(self) -> tuple[str, ...]:
        """Returns these paths of all attention blocks, in the order of the scores' rows."""
        crossing = range(self.lower, self.layers)
        own = (self._module(layer, Part.ATTENTION_OUTPUT) for layer in range(self.layers))
        return (*own, *(self._module(layer, Part.CROSS_OUTPUT) for layer in crossing))

    def ffn_output(self, layer: int) -> str:
        """Returns the body-relative path of the linear layer whose input carries a layer's neuron nodes."""
        return self._module(layer, Part.FFN_OUT)

    def _module(self, layer: int, part: Part) -> str:
        if not 0 <= layer < self.layers:
            raise IndexError(f"layer {layer} of {self.layers}")
        path, inside = self.family.stacks[layer >= self.lower]
        module = next(name for name, found in inside.items() if found is part)
        indices = divmod(layer, self.inner) if path.count("{}") == 2 else (layer - (layer >= self.lower) * self.lower,)
        return f"{path.format(*indices)}.{module}"


CROSS = frozenset({Part.CROSS_QUERY, Part.CROSS_KEY, Part.CROSS_VALUE, Part.CROSS_OUTPUT, Part.CROSS_NORM})
"""Parts of attention to another stack."""
KEYS_AND_VALUES = frozenset({Part.KEY, Part.VALUE, Part.CROSS_KEY, Part.CROSS_VALUE})
LINEAR = frozenset(
    {Part.QUERY, Part.KEY, Part.VALUE, Part.QUERY_KEY_VALUE, Part.ATTENTION_OUTPUT, Part.FFN_IN, Part.FFN_OUT}
)
"""Parts that are products with a weight."""


def _unknown(model_type: str, parameters: list[str]) -> MergeError:
    return MergeError(
        f"{model_type}: no place known for {listed(parameters)}; methods that weigh heads, neurons or layers "
        "cannot treat them, method `average` still can"
    )


TABLES: Mapping[str, Family] = {**FAMILIES, **DECODERS, **VISION}
"""Every family whose heads, neurons and layers are known, by transformers' model type."""


def topology(config: PretrainedConfig) -> Topology:
    """Returns the topology of a model's configuration."""
    gated = config.model_type == "dinov2" and config.use_swiglu_ffn
    family = GATED_DINOV2 if gated else TABLES.get(config.model_type)
    if family is None:
        raise MergeError(
            f"no topology for models of type {config.model_type!r}{did_you_mean(config.model_type, TABLES)}, so their "
            "heads and neurons are not known; methods without data, regmean and --importance diagonal still work"
        )
    heads = config.num_attention_heads
    inner = getattr(config, "inner_group_num", 1)
    nested = family.layer.count("{}") == 2
    lower = config.num_hidden_groups * inner if nested else config.num_hidden_layers
    upper = (getattr(config, "num_decoder_layers", None) or lower) if family.upper else 0
    experts = _experts(config) if config.model_type in MIXTURES else 0
    return Topology(
        config.model_type,
        family,
        layers=lower + upper,
        heads=heads,
        head_dim=_head_dim(config),
        neurons=0 if experts else _neurons(config),
        inner=inner,
        groups=getattr(config, "num_key_value_heads", None) or heads,
        lower=lower,
        experts=experts,
    )


def _head_dim(config: PretrainedConfig) -> int:
    named = (getattr(config, name, None) for name in ("attention_head_size", "head_dim", "d_kv"))
    return int(next(filter(None, named), config.hidden_size // config.num_attention_heads))


def _neurons(config: PretrainedConfig) -> int:
    if config.model_type == "dinov2":
        return dinov2_neurons(config.hidden_size, config.mlp_ratio, gated=config.use_swiglu_ffn)
    names = {"distilbert": "hidden_dim", "gpt2": "n_inner", "t5": "d_ff"}
    found = getattr(config, names.get(config.model_type, "intermediate_size"))
    return int(found or 4 * config.hidden_size)  # GPT-2 leaves it open


def _experts(config: PretrainedConfig) -> int:
    return int(getattr(config, "num_local_experts", None) or config.num_experts)


def topology_of(config: PretrainedConfig) -> Topology | None:
    """Returns the topology of a model's configuration, None for a family without a table."""
    return topology(config) if config.model_type in TABLES else None


def check_nodes(table: Topology) -> None:
    """Raises `MergeError` where the neurons of a family have no mask nodes."""
    if table.mixture:
        raise MergeError(
            f"{table.model_type} has mixtures of experts, whose neurons have no mask nodes: use --importance "
            "block_traces (one number an expert) or diagonal"
        )


def pooler_parameters(config: PretrainedConfig, parameters: Iterable[str]) -> tuple[str, ...]:
    """Returns those body-relative names that belong to the pooler; none for a family without a table."""
    table = topology_of(config)
    places = () if table is None else ((name, table._find(name)) for name in parameters)
    return tuple(name for name, place in places if place is not None and place.part is Part.POOLER)


__all__ = [
    "CROSS",
    "FAMILIES",
    "TABLES",
    "Axis",
    "Part",
    "Place",
    "Topology",
    "check_nodes",
    "pooler_parameters",
    "topology",
    "topology_of",
]
