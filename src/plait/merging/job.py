"""A merge that has been checked from headers alone: what is combined, by which rule, into which shapes and dtypes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from plait.checkpoints.writer import DTYPES, Slot
from plait.encoders.topology import Topology
from plait.errors import MergeError, RecipeError, listed
from plait.merging.chunks import TensorSource
from plait.merging.layout import Layout
from plait.merging.rule import RULES, RuleEntry

logger = logging.getLogger("plait")


@runtime_checkable
class Weighting(Protocol):
    """Per-parameter statistics: importances or Gram matrices."""

    def of(self, parameter: str) -> Tensor | None:
        """Returns what is known of a parameter, or None."""


@dataclass(frozen=True)
class Job:
    """One merge, checked; `slots` are in the order in which the first source stores them."""

    sources: tuple[TensorSource, ...]
    slots: tuple[Slot, ...]
    rule: RuleEntry
    weights: Tensor
    importances: tuple[Weighting, ...] | None
    grams: tuple[Weighting, ...] | None
    base: TensorSource | None
    options: Mapping[str, Any]
    seed: int
    topology: Topology | None = None

    @cached_property
    def layout(self) -> Layout:
        """Returns which parameters are linear weights of layers, and how deep each lies."""
        return Layout([slot.name for slot in self.slots], self.topology)

    def rule_for(self, slot: Slot) -> RuleEntry:
        """Returns the rule of a parameter.

        That is the average where the rule needs a base and the base lacks it, and what the rule's fact `elsewhere`
        names where the parameter is not a linear weight of a layer.
        """
        if "base" in self.rule.inputs and (self.base is None or slot.name not in self.base):
            return RULES["average"]
        elsewhere = self.rule.facts.get("elsewhere")
        if elsewhere is None or self.layout.is_linear(slot.name, slot.shape):
            return self.rule
        return RULES[elsewhere]

    def options_for(self, rule: RuleEntry) -> Mapping[str, Any]:
        """Returns the options with which a rule is called: those of the merge that it has."""
        defaults = {name: option.default for name, option in self.rule.options.items()}
        return {name: value for name, value in {**defaults, **self.options}.items() if name in rule.options}


def prepare(
    sources: Sequence[TensorSource],
    names: Sequence[str],
    rule: RuleEntry,
    *,
    weights: Sequence[float] | None = None,
    importances: Sequence[Weighting] | None = None,
    grams: Sequence[Weighting] | None = None,
    base: TensorSource | None = None,
    options: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    topology: Topology | None = None,
) -> Job:
    """Returns the checked merge; nothing but headers has been read.

    Without a topology, names and shapes say which parameters are linear weights of layers and how deep they lie.

    Raises:
        RecipeError: options, weights or inputs that do not suit the rule.
        MergeError: parameters that are missing or whose shapes differ, all of them listed.
    """
    check_inputs(rule, len(sources), importances=importances, grams=grams, base=base)
    check_options(rule, options or {})
    check_present(sources, names)
    base = base if "base" in rule.inputs else None
    if base is not None and (lacking := [name for name in names if name not in base]):
        logger.warning(
            "%s lacks %s: averaged there, %s needs a base", base.name, listed(lacking, 5), rule.name
        )
    check_headers([*sources, *([base] if base is not None else [])], names)
    return Job(
        sources=tuple(sources),
        slots=slots_of(sources, names, dtype),
        rule=rule,
        weights=check_weights(rule, weights, len(sources)),
        importances=None if importances is None else tuple(importances),
        grams=None if grams is None else tuple(grams),
        base=base,
        options=dict(options or {}),
        seed=seed,
        topology=topology,
    )


def check_inputs(
    rule: RuleEntry,
    count: int,
    *,
    importances: Sequence[Weighting] | None = None,
    grams: Sequence[Weighting] | None = None,
    base: object = None,
) -> None:
    """Raises `RecipeError` when a rule lacks an input that it is declared to need."""
    if count == 0:
        raise RecipeError("there is nothing to merge: no source is given")
    wanted = rule.facts.get("sources")
    if wanted is not None and count != wanted:
        raise RecipeError(
            f"{rule.name} merges exactly {wanted} sources, {count} are given (average takes any number)"
        )
    if "base" in rule.inputs and base is None:
        raise RecipeError(
            f"{rule.name} needs the model that the sources were fine-tuned from: give it as base"
        )
    for kind, given in (("importances", importances), ("grams", grams)):
        if kind in rule.inputs and (given is None or len(given) != count):
            found = "none" if given is None else str(len(given))
            raise RecipeError(
                f"{rule.name} needs {kind} of each of the {count} sources, found {found}: give data"
            )


def check_options(rule: RuleEntry, options: Mapping[str, Any]) -> None:
    """Raises `RecipeError` when an option is unknown to a rule, of the wrong kind or out of range."""
    rule.check_values(options)


def check_weights(rule: RuleEntry, weights: Sequence[float] | None, count: int) -> Tensor:
    """Returns λ as a tensor, 1 for every source when none are given.

    Raises:
        RecipeError: not one weight per source, or weights that are negative, not finite or all zero.
    """
    values = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(values) != count:
        raise RecipeError(f"{len(values)} weights for {count} sources (expected one each)")
    if not all(math.isfinite(w) and w >= 0 for w in values) or sum(values) <= 0:
        raise RecipeError(
            f"weights {values} for {rule.name}: expected finite numbers, none below 0, one above 0"
        )
    return torch.tensor(values, dtype=torch.float32)


def check_present(sources: Sequence[TensorSource], names: Sequence[str]) -> None:
    """Raises `MergeError` listing every parameter that a source lacks."""
    missing = [f"{source.name} has no {name}" for name in names for source in sources if name not in source]
    if missing:
        raise MergeError(f"parameters are missing: {listed(missing)}")


def check_headers(sources: Sequence[TensorSource], names: Sequence[str]) -> None:
    """Raises `MergeError` when shapes differ or dtypes are not understood, listing every such parameter."""
    places = {name: [source for source in sources if name in source] for name in names}
    problems = [text for name, owners in places.items() if (text := _shape_problem(name, owners))]
    if problems:
        raise MergeError(f"shapes differ, these models cannot be merged: {listed(problems)}")
    kinds = [(name, s.name, s.header(name).dtype) for name, owners in places.items() for s in owners]
    strange = [f"{name} of {owner} is {_word(kind)}" for name, owner, kind in kinds if kind not in DTYPES]
    if strange:
        raise MergeError(f"cannot be merged: {listed(strange)} (expected {', '.join(map(_word, DTYPES))})")


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape_problem(name: str, sources: Sequence[TensorSource]) -> str | None:
    shapes = [tuple(s.header(name).shape) for s in sources]
    if len(set(shapes)) == 1:
        return None
    found = ", ".join(f"{s.name} {list(shape)}" for s, shape in zip(sources, shapes, strict=True))
    return f"{name}: {found}"


def _position(source: TensorSource, name: str) -> tuple[str, int]:
    header = source.header(name)
    return (str(header.file), header.start)


def slots_of(
    sources: Sequence[TensorSource], names: Sequence[str], dtype: torch.dtype | None
) -> tuple[Slot, ...]:
    """Returns what the result holds, in the order in which the first source stores it."""
    order = sorted(names, key=lambda name: _position(sources[0], name))
    return tuple(_slot(name, sources, dtype) for name in order)


def _slot(name: str, sources: Sequence[TensorSource], dtype: torch.dtype | None) -> Slot:
    headers = [s.header(name) for s in sources]
    common = headers[0].dtype
    for header in headers[1:]:
        common = torch.promote_types(common, header.dtype)
    return Slot(
        name, dtype if dtype is not None and common.is_floating_point else common, tuple(headers[0].shape)
    )
