"""One JSON schema of all recipes, for editors and other programs: methods with their options; imports all of Plait."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import AliasChoices, BaseModel
from pydantic.json_schema import models_json_schema

from plait.amalgamation.gate import GATES
from plait.amalgamation.gate_selection import JOINT
from plait.amalgamation.objective import OBJECTIVES
from plait.api.registries import merging_defaults
from plait.ensembles.consistency import CONSISTENCIES
from plait.ensembles.method import METHODS
from plait.ensembles.perturbation import PERTURBATIONS
from plait.merging.rule import RULES
from plait.recipe import (
    AUTO,
    COMBINES,
    ESTIMATION,
    AmalgamateRecipe,
    ComparedSource,
    DataSpec,
    LayerWeight,
    MethodSpec,
    SourceSpec,
    TeacherSpec,
)
from plait.recipe.fields import REGISTRY
from plait.registry import Entry, arguments_of, canonical
from plait.statistics.estimator import ESTIMATORS
from plait.statistics.importance import NORMALIZATIONS

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
WRITTEN: tuple[type[BaseModel], ...] = (
    *COMBINES.values(), SourceSpec, LayerWeight, ComparedSource, TeacherSpec, DataSpec, MethodSpec,
)  # fmt: skip
"""Models whose fields a user writes."""
UNUSED = ("NamedOptions", "MethodSpec")
"""Definitions that those of the methods replace."""
ANY_RULE = ("examples", "batch_size", "max_length", "seed")
"""Settings of `method` that go with every merging method: refinement reads texts too."""


def recipe_schema() -> Schema:
    """Returns the schema of all recipes, with what the registries hold now."""
    recipes: list[tuple[type[BaseModel], Any]] = [(model, "validation") for model in COMBINES.values()]
    found: Schema = models_json_schema(recipes, ref_template="#/$defs/{model}")[1]["$defs"]
    settings = method_settings(MethodSpec.model_json_schema()["properties"])
    for model in WRITTEN:
        if model.__name__ in found:
            explain(found[model.__name__], model)
    for word, model in COMBINES.items():
        spell_aliases(found[model.__name__], model)
        if word != "merge":
            found[model.__name__].setdefault("required", []).insert(0, "combine")
    definitions = {name: part for name, part in found.items() if name not in UNUSED}
    return {
        "$schema": DIALECT,
        "title": "Plait recipe",
        "description": "A job: a merge (also without `combine`), an amalgamation, an ensemble, or a comparison.",
        "oneOf": [{"$ref": f"#/$defs/{model.__name__}"} for model in COMBINES.values()],
        "$defs": {**linked(definitions), **method_definitions(settings)},
    }


def explain(part: Schema, model: type[BaseModel]) -> None:
    """Describes a model and its fields by its docstring, in place; drops titles that repeat the name."""
    part["description"] = (inspect.getdoc(model) or "").partition("\n\n")[0].replace("\n", " ")
    meanings = arguments_of(model)
    for name, about in part["properties"].items():
        about.pop("title", None)
        if name in meanings:
            about["description"] = meanings[name]


def spell_aliases(part: Schema, model: type[BaseModel]) -> None:
    """Adds the other names of fields, in place: one of the names serves where the field is required."""
    for name, field in model.model_fields.items():
        if not isinstance(field.validation_alias, AliasChoices):
            continue
        names = [str(choice) for choice in field.validation_alias.choices]
        part["properties"] |= dict.fromkeys(names, part["properties"][name])
        if name in part.get("required", ()):
            part["required"].remove(name)
            part.setdefault("allOf", []).append({"anyOf": [{"required": [other]} for other in names]})


def linked(node: Any) -> Any:
    """Returns a schema in which every mark of a registry points to the definition of its methods."""
    if isinstance(node, Mapping):
        if REGISTRY in node:
            kept = {key: node[key] for key in ("description", "default") if key in node}
            return {"$ref": f"#/$defs/{node[REGISTRY]}", **kept}
        return {key: linked(value) for key, value in node.items()}
    return [linked(value) for value in node] if isinstance(node, list) else node


def method_definitions(settings: Schema) -> Schema:
    """Returns a definition for each registry: a name alone, or a mapping of one method's name and options."""
    found: Schema = {}
    for registry in (RULES, GATES, OBJECTIVES, METHODS, PERTURBATIONS, CONSISTENCIES):
        methods = {name: one_method(registry[name], settings_of(registry[name], settings)) for name in registry}
        if registry is RULES:
            methods |= {AUTO: automatic(settings)}
        elif registry is GATES:
            methods |= {name: one_method(JOINT[name], {}) for name in JOINT}
        elif registry is OBJECTIVES:  # options alone are those of the default
            methods[AmalgamateRecipe.model_fields["objective"].default.name].pop("required")
        names = [spelling for name in methods for spelling in spellings(name)]
        found[str(registry.plugins)] = {"anyOf": [{"enum": names}, *methods.values()]}
    return found


def one_method(entry: Entry[Any], settings: Schema) -> Schema:
    """Returns the mapping of one method: its name, its own options, and what else goes with it."""
    options = entry.model.model_json_schema()
    for about in options["properties"].values():
        about.pop("title", None)
    return {
        "type": "object",
        "title": entry.name,
        "description": " ".join(filter(None, (entry.summary, entry.when))),
        "properties": {"name": {"enum": spellings(entry.name)}, **options["properties"], **settings},
        "required": ["name", *options.get("required", ())],
        "additionalProperties": False,
    }


def automatic(settings: Schema) -> Schema:
    """Returns the mapping of a merging method that is left open: options of all that may be chosen."""
    options: dict[str, list[Schema]] = {}
    for name in merging_defaults():
        for option, about in RULES[name].model.model_json_schema()["properties"].items():
            options.setdefault(option, []).append(about)
    return {
        "type": "object",
        "title": AUTO,
        "description": "Method that Plait chooses by what is given.",
        "properties": {
            "name": {"enum": [AUTO]},
            **{name: {"anyOf": every} for name, every in options.items()},
            **settings,
        },
        "additionalProperties": False,
    }


def method_settings(properties: Schema) -> Schema:
    """Returns the settings of `method` that say how statistics are gathered, with the names to choose from."""
    meanings = arguments_of(MethodSpec)
    found = {name: {**properties[name], "description": meanings[name]} for name in ESTIMATION}
    for about in found.values():
        about.pop("title", None)
    importances = [spelling for name in ESTIMATORS if name != "gram" for spelling in spellings(name)]
    found["importance"] |= {"enum": importances}
    found["normalize"] |= {"enum": list(NORMALIZATIONS)}
    return found


def settings_of(entry: Entry[Any], settings: Schema) -> Schema:
    """Returns those settings of `method` that go with a merging method; none with what merges nothing."""
    if entry.name not in RULES or RULES[entry.name] is not entry:
        return {}
    if "importances" in entry.inputs:
        wanted: Iterable[str] = (name for name in ESTIMATION if name != "forward")
    else:
        wanted = (*ANY_RULE, "forward") if "grams" in entry.inputs else ANY_RULE
    return {name: settings[name] for name in wanted}


def spellings(name: str) -> list[str]:
    """Returns a name as it is registered, and as the command line writes it."""
    return list(dict.fromkeys((canonical(name), name.replace("_", "-"))))
