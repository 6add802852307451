"""What a method is: which models learn, and the named terms that they minimise together.

Each method is a pure function of inputs that it takes by name from `INPUTS`; the terms are summed and logged. Facts
say what is built: `shared` (one encoder, M tops), `joint` (M models that learn side by side), `separate` (M models,
one after another), `factors` (one encoder, private factors by member; the fact `factors` is what adds them), `taught`
(what M separate models teach), `soup` (M models, averaged), `path` (the epochs of one training, averaged), `branches`
(one training that branches); `lone` that there is one model only, `passes` that its answers are several passes with
dropout, and `plain` that what is written is one ordinary checkpoint; `implied` what it amounts to in fields it has no
use for; `limits` what options may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor

from plait.data import ProblemType
from plait.ensembles.consistency import CONSISTENCIES
from plait.ensembles.shapes import Mask, MemberLogits, Scalar
from plait.errors import RecipeError
from plait.registry import Entry, Registry

Terms = Mapping[str, Scalar]
Method = Callable[..., Terms]
METHODS: Registry[Method] = Registry(
    "ensemble method", "plait.ensembles.methods", plugins="plait.ensemble_methods", build="shared"
)

INPUTS = ("task", "regulariser", "logits", "problem", "mask", "labels", "alpha", "teachers", "labelled")
"""All that a method may ask for.

task: the mean over members of their own losses. regulariser: α R. logits: of all members. problem: what they mean.
mask: the rows that count. labels: as the task has them. alpha: α, the weight of what the method adds. teachers: logits
of the models that teach. labelled: the rows that have a label, of which `task` is the mean.
"""
REGULARISED = ("regulariser",)
WEIGHED = ("regulariser", "alpha")


class Build(StrEnum):
    """What a method trains."""

    SHARED = "shared"
    JOINT = "joint"
    SEPARATE = "separate"
    FACTORS = "factors"
    TAUGHT = "taught"
    SOUP = "soup"
    PATH = "path"
    BRANCHES = "branches"


def built_as(build: Build) -> list[str]:
    """Returns the methods that train several models in this way."""
    entries = (METHODS[name] for name in METHODS)
    return [entry.name for entry in entries if entry.facts["build"] == build and not entry.facts.get("lone")]


ONE_BY_ONE = (Build.SEPARATE, Build.TAUGHT, Build.SOUP)
"""Builds that begin with M models, trained one after another."""


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
        self.entry.check_values(self.options)
        CONSISTENCIES[self.consistency].check_values(self.consistency_options)

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

    @property
    def plain(self) -> bool:
        """Says whether what is written is one ordinary checkpoint."""
        return bool(self.entry.facts.get("plain"))

    @property
    def taught(self) -> bool:
        """Says whether what is written learns from M models."""
        return self.build is Build.TAUGHT

    @property
    def alone(self) -> bool:
        """Says whether each model that is trained in the end has one member."""
        return self.lone or self.plain or self.build in (Build.SEPARATE, Build.JOINT)

    @property
    def from_soup(self) -> bool:
        """Says whether what learns in the end starts from the mean of the models that were trained before."""
        return "start" in self.entry.options and self.option("start") == "soup"

    @property
    def alike(self) -> bool:
        """Says whether models that are trained one after another start with one head, so that they can be averaged."""
        return self.build is Build.SOUP or self.from_soup

    def factorise(self, model: Any) -> None:
        """Gives an ensemble the private factors of this method, in place."""
        self.entry.facts["factors"](model, **self.options)

    def option(self, name: str) -> Any:
        """Returns an option of the method: as given, else its default."""
        return self.options.get(name, self.entry.options[name].default)

    def terms(  # noqa: PLR0917 (inputs by name)
        self,
        task: Scalar,
        logits: MemberLogits,
        labels: Tensor,
        problem: ProblemType,
        mask: Mask | None,
        teachers: MemberLogits | None = None,
        labelled: Mask | None = None,
    ) -> Terms:
        """Returns what is minimised, by name."""
        entry = self.entry
        given: dict[str, Any] = {
            "task": task, "logits": logits, "labels": labels, "problem": problem, "mask": mask, "alpha": self.alpha,
            "teachers": teachers, "labelled": labelled,
        }  # fmt: skip
        if "regulariser" in entry.inputs:
            given["regulariser"] = self.alpha * regulariser(self, logits, problem, mask)
        return entry.function(**{name: given[name] for name in entry.inputs}, **self.options)


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
