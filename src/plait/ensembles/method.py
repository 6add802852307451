"""What a method is: which models learn, and the named terms that they minimise together.

Each method is a pure function of inputs that it takes by name from `INPUTS`; the terms are summed and logged. Facts
say what is built: `shared` (one encoder, M tops), `joint` (M models that learn side by side), `separate` (M models,
one after another), `factors` (one encoder, rank-1 factors by member); `lone` that there is one model only, and
`passes` that its answers are several passes with dropout; `implied` what it amounts to in fields it has no use for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor

from plait.data import ProblemType
from plait.ensembles.consistency import CONSISTENCIES
from plait.ensembles.shapes import Mask, MemberLogits, Scalar
from plait.errors import RecipeError, listed
from plait.registry import Entry, Registry

Terms = Mapping[str, Scalar]
Method = Callable[..., Terms]
METHODS: Registry[Method] = Registry("ensemble method", "plait.ensembles.methods")

INPUTS = ("task", "regulariser", "logits", "problem", "mask", "labels", "alpha")
"""All that a method may ask for.

task: the mean over members of their own losses. regulariser: α R. logits: of all members. problem: what they mean.
mask: the rows that count. labels: as the task has them. alpha: α, the weight of what the method adds.
"""
REGULARISED = ("regulariser",)
WEIGHED = ("regulariser", "alpha")


class Build(StrEnum):
    """What a method trains."""

    SHARED = "shared"
    JOINT = "joint"
    SEPARATE = "separate"
    FACTORS = "factors"


@dataclass(frozen=True)
class Choice:
    """A chosen method with its options, and the regulariser where it has one.

    Attributes:
        name: In `METHODS`.
        options: Of the method.
        consistency: In `CONSISTENCIES`.
        consistency_options: Of the regulariser.
        alpha: α.
    """

    name: str = "camero"
    options: Mapping[str, Any] = field(default_factory=dict)
    consistency: str = "ensemble"
    consistency_options: Mapping[str, Any] = field(default_factory=dict)
    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Checks every name and option.

        Raises:
            RecipeError: an unknown method, regulariser or option (did you mean).
        """
        self.entry.check(self.options)
        low = [f"{name} is {value}" for name, value in self.options.items() if not _above_zero(value)]
        if low:
            raise RecipeError(f"method {self.entry.name}: {listed(low)}; expected a number above 0")
        CONSISTENCIES[self.consistency].check(self.consistency_options)
        given = self.consistency_options.items()
        if wrong := [f"{name} is {value!r}" for name, value in given if not isinstance(value, bool)]:
            raise RecipeError(f"consistency {self.consistency}: {listed(wrong)}; expected true or false")

    @property
    def entry(self) -> Entry[Method]:
        """Returns the method's entry in the registry."""
        return METHODS[self.name]

    @property
    def build(self) -> Build:
        """Returns what it trains."""
        return Build(self.entry.facts["build"])

    @property
    def lone(self) -> bool:
        """Says whether it trains one model only."""
        return bool(self.entry.facts.get("lone"))

    @property
    def passes(self) -> bool:
        """Says whether the model's answers are several passes with dropout."""
        return bool(self.entry.facts.get("passes"))

    def terms(
        self, task: Scalar, logits: MemberLogits, labels: Tensor, problem: ProblemType, mask: Mask | None
    ) -> Terms:
        """Returns what is minimised, by name."""
        entry = self.entry
        given: dict[str, Any] = {
            "task": task, "logits": logits, "labels": labels, "problem": problem, "mask": mask, "alpha": self.alpha,
        }  # fmt: skip
        if "regulariser" in entry.inputs:
            given["regulariser"] = self.alpha * regulariser(self, logits, problem, mask)
        return entry.function(**{name: given[name] for name in entry.inputs}, **self.options)


def _above_zero(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def regulariser(choice: Choice, logits: MemberLogits, problem: ProblemType, mask: Mask | None) -> Scalar:
    """Returns R of the chosen kind, in float32."""
    entry = CONSISTENCIES[choice.consistency]
    given = {"logits": logits, "problem": problem, "mask": mask}
    inputs = {name: given[name] for name in entry.inputs}
    return entry.function(**inputs, **choice.consistency_options)


def refuse_unused(name: str, given: Mapping[str, Any]) -> None:
    """Raises `RecipeError` where something is given that a method does not use: it would be ignored.

    Args:
        name: The method.
        given: consistency, alpha and members, None where the recipe says nothing.
    """
    entry = METHODS[name]
    used = {"alpha"} if set(WEIGHED) & set(entry.inputs) else set()
    used |= {"consistency"} if set(REGULARISED) & set(entry.inputs) else set()
    used |= set() if entry.facts.get("lone") and not entry.facts.get("passes") else {"members"}
    implied = entry.facts.get("implied", {})
    said = {key for key, value in given.items() if value is not None and implied.get(key) != value}
    stray = [key for key in given if key in said - used]
    if stray == ["members"] and given["members"] == 1:
        return
    if stray:
        raise RecipeError(
            f"method {entry.name} does not use {', '.join(stray)}; leave {'it' if len(stray) == 1 else 'them'} out, "
            "or choose method camero"
        )
