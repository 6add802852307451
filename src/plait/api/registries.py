"""All registries in one table, and each method as plain data, read off its signature; imports all of Plait."""

from __future__ import annotations

import inspect
from typing import Any

from plait.amalgamation.choices import DEFAULTS
from plait.amalgamation.gate import GATES
from plait.amalgamation.gate_selection import JOINT
from plait.amalgamation.objective import OBJECTIVES
from plait.ensembles.consistency import CONSISTENCIES
from plait.ensembles.method import METHODS, Choice
from plait.ensembles.objective import PerturbationChoice
from plait.ensembles.perturbation import PERTURBATIONS
from plait.merging.rule import RULES
from plait.recipe import AmalgamateRecipe, EnsembleRecipe, MergeRecipe, MethodSpec
from plait.recipe.ensemble import TEACHING
from plait.registry import Entry, Registry
from plait.statistics.estimator import ESTIMATORS

KINDS: dict[str, Registry[Any]] = {
    "method": RULES,
    "importance": ESTIMATORS,
    "gate": GATES,
    "joint gate": JOINT,
    "objective": OBJECTIVES,
    "ensemble": METHODS,
    "perturbation": PERTURBATIONS,
    "consistency": CONSISTENCIES,
}
"""All that a recipe can name, by what it is called; merging methods go by their name alone."""


def merging_defaults() -> dict[str, str]:
    """Returns the merging methods that a merge without one takes, and when."""
    recipe = MergeRecipe.model_validate({"sources": {"a": "a"}, "output": "o"})
    cases = {"with a base": ({}, True), "with data of every source and no base": ({"a": 1}, False), "else": ({}, False)}
    return {recipe.resolved_method(data, base=base).name: when for when, (data, base) in cases.items()}


def defaults() -> dict[str, dict[str, str]]:
    """Returns the defaults of each kind, and when they are: as recipes and plans have them."""
    objective, method = (
        model.model_fields[name].default.name
        for model, name in ((AmalgamateRecipe, "objective"), (EnsembleRecipe, "method"))
    )
    return {
        "method": merging_defaults(),
        "importance": {MethodSpec.model_fields["importance"].default: "in a merge"},
        "joint gate": {DEFAULTS["gate"]: "always"},
        "objective": {objective: "always"},
        "ensemble": {method: "always", TEACHING: "with texts to teach on"},
        "perturbation": {PerturbationChoice().name: "where members share an encoder"},
        "consistency": {Choice().consistency: "always"},
    }


def every_method() -> dict[str, dict[str, Any]]:
    """Returns every method: merging methods under their name, all others behind what they are, such as `gate muka`."""
    chosen = defaults()
    return {
        (name if kind == "method" else f"{kind} {name}"): {
            "kind": kind,
            **describe_method(registry[name]),
            "default": chosen.get(kind, {}).get(name),
        }
        for kind, registry in KINDS.items()
        for name in registry
    }


def describe_method(entry: Entry[Any]) -> dict[str, Any]:
    """Returns one method as plain data, read off its signature and docstring."""
    needs = {"importances": "data", "grams": "data", "base": "base", "labels": "labels"}
    wanted = {needs[name] for name in entry.inputs if name in needs} | set(entry.facts.get("needs", ()))
    wanted |= {"passes"} if entry.facts.get("passes") else set()
    wanted |= {kept} if (kept := entry.facts.get("keep", "none")) != "none" else set()
    return {
        "summary": entry.summary,
        "when": entry.when,
        "needs": sorted(wanted),
        "options": {
            o.name: {"type": o.type, "default": o.default, "limits": o.bounds, "meaning": o.meaning}
            for o in entry.options.values()
        },
        "paper": entry.paper,
        "laws": sorted(str(getattr(law, "value", law)) for law in entry.facts.get("laws", ())),
        "documentation": inspect.getdoc(entry.function) or "",
    }
