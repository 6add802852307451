"""Gate, target, objective and scoring of an amalgamation: checked, defaults filled in."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from plait.amalgamation.gate import GATES, GateEntry
from plait.amalgamation.label_space import LabelSpace
from plait.amalgamation.objective import OBJECTIVES, ObjectiveEntry
from plait.data import Texts
from plait.errors import RecipeError, did_you_mean, listed
from plait.recipe import AmalgamateRecipe
from plait.teachers import Settings
from plait.teachers.record import Record, TextFacts
from plait.teachers.scoring import text_facts

logger = logging.getLogger("plait")

PASSES = 16
"""Monte Carlo passes where a gate needs them and the recipe names none, as in the paper."""
DEFAULTS: Mapping[str, Any] = {"gate": "auto", "target": "hard", "margin": True}
"""What decides where the recipe does not say; the reasons are in docs/amalgamation.md."""
ROUNDS = 0
"""How often the student corrects the routing where the recipe does not say."""
CONCATENATED: Mapping[str, Any] = {"gate": "energy", "temperature": 1.0, "target": "soft", "margin": False}
"""What softmax(concat z) is (methods of the VKD family): for reports and agreement where an objective has no gate."""
SCORING = ("passes", "last_layers", "dropout", "stop", "max_length")
"""Fields that decide what a store holds; those that a recipe leaves out are taken from a store that exists."""


def choices_of(recipe: AmalgamateRecipe) -> Choices:
    """Returns how posteriors become targets, after checking every name and option.

    Raises:
        RecipeError: an unknown gate, objective or option (did you mean), or options that contradict each other.
    """
    gated = "target" in OBJECTIVES[recipe.objective.name].inputs
    objective: dict[str, Any] = {"objective": recipe.objective.name, "options": recipe.objective.options}
    if gated:
        choices = Choices(
            **{**DEFAULTS, **deciding(recipe)},
            **objective,
            posterior=recipe.posterior,
            calibrate=recipe.calibrate,
            agreement=recipe.agreement,
            gate_options={} if recipe.gate is None else recipe.gate.options,
        )
    else:
        _say_what_is_idle(recipe)
        scaled = recipe.calibrate == "temperature"
        choices = Choices(**CONCATENATED, **objective, calibrate="temperature" if scaled else "none")
    choices.objective_entry.check_values(choices.options)
    check_gate(choices)
    if problems := list(_without_effect(recipe, choices)):
        raise RecipeError(listed(problems))
    if not (choices.needs_passes or recipe.passes) and (recipe.last_layers or recipe.dropout):
        logger.warning(
            "last_layers and dropout are of Monte Carlo passes, which nothing here needs: give --passes"
        )
    return choices


def check_gate(choices: Choices) -> None:
    """Raises `RecipeError` where the gate is unknown, or an option is not one of its own."""
    if not choices.joint:
        try:
            (entry,) = choices.gate_entries
        except RecipeError:
            known = (*GATES, *MEMBERS)
            raise RecipeError(f"unknown gate {choices.gate!r}{did_you_mean(choices.gate, known)}") from None
        entry.check_values(choices.gate_options)
    elif choices.gate_options:
        raise RecipeError(
            f"gate {choices.gate} has no options, it weighs other gates as they come: leave out "
            f"{listed(choices.gate_options)}"
        )


def deciding(recipe: AmalgamateRecipe) -> dict[str, Any]:
    """Returns what the recipe says about the gate, without what it leaves to Plait."""
    gate = None if recipe.gate is None else recipe.gate.name
    settings = {
        "gate": gate,
        "temperature": recipe.temperature,
        "target": recipe.target,
        "margin": recipe.margin,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _say_what_is_idle(recipe: AmalgamateRecipe) -> None:
    """Warns of what an objective without a gate does not look at: a comparison may give all objectives one line."""
    idle = [*deciding(recipe), *(["posterior"] if recipe.posterior != "single" else [])]
    idle += [name for name in ("rounds", "agreement", "base") if getattr(recipe, name)]
    idle += ["calibrate"] if recipe.calibrate in {"standardize", "auto"} else []
    if idle:
        logger.warning(
            "objective %s has no gate, it takes all teachers on every text: %s without effect",
            *(recipe.objective.name, f"{', '.join(idle)} {'is' if len(idle) == 1 else 'are'}"),
        )


def _without_effect(recipe: AmalgamateRecipe, choices: Choices) -> Iterator[str]:
    if choices.joint and recipe.calibrate in {"standardize", "auto"}:
        yield (
            f"gate {choices.gate} finds by itself what a score is counted from: leave --calibrate "
            f"{recipe.calibrate} out"
        )
    if choices.agreement and not choices.joint:
        yield f"agreement is that of several gates, and there is one, {choices.gate}: give --gate auto, or leave it out"
    if recipe.temperature is not None and choices.target == "hard":
        yield "temperature is of soft targets only: give --target soft, or leave it out"
    if recipe.passes == 0 and choices.needs_passes:
        reason = (
            f"gate {choices.gate}" if any(entry.facts["passes"] for entry in choices.gate_entries)
            else "posterior mean" if choices.posterior == "mean" else "calibrate temperature"
        )  # fmt: skip
        yield f"{reason} needs Monte Carlo passes: leave --passes 0 out, or choose otherwise (plait methods)"
    if recipe.stop not in (None, "never") and (choices.gate != "muka" or choices.calibrate in {"standardize", "auto"}):
        yield (
            f"stop {recipe.stop} is decided by the plain scores of gate muka, not by {choices.gate} with calibrate "
            f"{choices.calibrate}: leave --stop out"
        )


def for_space(choices: Choices, recipe: AmalgamateRecipe, space: LabelSpace) -> Choices:
    """Returns the choices with what the labels decide: teachers that share one agree on a target by it."""
    shared = sum(len(set(places)) for places in space.columns) > len(space)
    decided = recipe.target is not None or not choices.gated or not choices.joint
    return choices if decided or not shared else replace(choices, target="consensus")


def rounds_of(recipe: AmalgamateRecipe, choices: Choices) -> int:
    """Returns how often a student's answers correct the routing; an objective without a gate has none to correct."""
    if not choices.gated or choices.gate == "oracle":
        return 0
    return ROUNDS if recipe.rounds is None else recipe.rounds


def settings_of(recipe: AmalgamateRecipe, choices: Choices, texts: Texts, known: Record | None) -> Settings:
    """Returns how teachers score texts.

    What the recipe does not say is taken from the store where there is one of these texts, finished or not; so are the
    seed of its dropout masks (the recipe's decides the training), and all about passes where nothing needs them.
    """
    named = recipe.model_fields_set
    values: dict[str, Any] = {
        "passes": PASSES if choices.needs_passes else 0, "max_length": recipe.max_length, "seed": recipe.seed,
        "last_layers": None, "dropout": None, "stop": "never",
    }  # fmt: skip
    asked = {name: getattr(recipe, name) for name in SCORING if name in named}
    values |= {name: value for name, value in asked.items() if value is not None}
    if known is not None and of_these(known.texts, texts):
        stored = known.settings
        usable = bool(stored.passes) or not choices.needs_passes
        free = [name for name in SCORING if usable and (asked.get(name) is None or _idle(name, choices))]
        values |= {name: getattr(stored, name) for name in [*free, "seed"]}
    return Settings(**values, keep=choices.keep)


def of_these(known: TextFacts, texts: Texts) -> bool:
    """Says whether a store is of these texts: one of others is not used, and so decides nothing."""
    return known.count == texts.count() and known.fingerprint == text_facts(texts).fingerprint


def _idle(name: str, choices: Choices) -> bool:
    """Says whether a field speaks of passes that nothing needs."""
    return name != "max_length" and not choices.needs_passes


MEMBERS = {
    "auto": ("mahalanobis", "vocabulary", "update", "base", "entropy"),
    "fitted": ("mahalanobis", "vocabulary", "update", "base", "entropy", "energy", "max_logit"),
}
"""Which gates may have a say in a joint one."""


@dataclass(frozen=True)
class Choices:
    """How posteriors become targets.

    Attributes:
        gate: Who decides which teacher is competent: a registered gate, or `auto` or `fitted`, which weigh several.
        temperature: τ of the soft gate; the gate's own by default.
        target: The chosen teacher's posterior, all of them, weighted, or what all agree on, weighted.
        margin: Whether texts count by how clear the choice was.
        agreement: Whether texts count by how many gates of a joint one would have chosen the same.
        posterior: One deterministic pass, or the Monte Carlo mean.
        calibrate: Bring the teachers to one scale first, without labels.
        objective: What the student minimises.
        options: The objective's own options.
        gate_options: The gate's own options.
    """

    gate: str = "muka"
    temperature: float | None = None
    target: Literal["hard", "soft", "consensus"] = "hard"
    margin: bool = True
    agreement: bool = False
    posterior: Literal["single", "mean"] = "single"
    calibrate: Literal["none", "temperature", "standardize", "auto"] = "none"
    objective: str = "muka"
    options: Mapping[str, Any] = field(default_factory=dict)
    gate_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gated(self) -> bool:
        """Says whether the gate decides what is taught; else the objective takes all teachers on every text."""
        return "target" in self.objective_entry.inputs

    @property
    def softness(self) -> float:
        """Returns τ of the soft gate."""
        if self.temperature is not None:
            return float(self.temperature)
        return 1.0 if self.joint else float(self.gate_entries[0].facts["temperature"])

    @property
    def joint(self) -> bool:
        """Says whether several gates decide together."""
        return self.gate in MEMBERS

    @property
    def gate_entries(self) -> tuple[GateEntry, ...]:
        """Returns the registered gate, or all that may have a say in a joint one."""
        return tuple(GATES[name] for name in (MEMBERS[self.gate] if self.joint else (self.gate,)))

    @property
    def objective_entry(self) -> ObjectiveEntry:
        """Returns the registered objective."""
        return OBJECTIVES[self.objective]

    @property
    def needs_passes(self) -> bool:
        """Says whether the posteriors must hold Monte Carlo passes."""
        return (
            any(entry.facts["passes"] for entry in self.gate_entries)
            or self.posterior == "mean"
            or self.calibrate == "temperature"
        )

    @property
    def keep(self) -> Literal["none", "features", "layers"]:
        """Returns what the store must hold besides logits: the most that gate or objective asks for."""
        wanted = {self.objective_entry.facts["keep"], *(entry.facts["keep"] for entry in self.gate_entries)}
        return "layers" if "layers" in wanted else "features" if "features" in wanted else "none"
