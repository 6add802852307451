"""Recipes of all three strands, made from the arguments of `merge`, `amalgamate` and `ensemble`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.errors import RecipeError, did_you_mean, listed
from plait.recipe import AUTO, AmalgamateRecipe, CompareRecipe, EnsembleRecipe, MergeRecipe, parse_as
from plait.recipe.ensemble import TEACHING
from plait.recipe.naming import named_places


def is_file(entry: Any) -> bool:
    """Returns whether data is named by a path, which a recipe can keep, rather than held in memory."""
    return isinstance(entry, str | Path) or (isinstance(entry, Mapping) and "path" in entry)


def amalgamation_recipe(
    teachers: Mapping[str, Any] | Sequence[str | Path],
    *,
    out: str | Path,
    texts: Any,
    student: str | Path | None,
    validation: Any,
    options: Mapping[str, Any],
) -> AmalgamateRecipe:
    """Returns the recipe that these arguments of `amalgamate` spell; data in memory stays outside."""
    named = options.get("labels")
    content = {
        **{name: value for name, value in options.items() if name != "labels"},
        "sources": describe_sources(teachers, labels=named),
        "student": None if student is None else str(student),
        "output": str(out),
        **({"text": texts} if is_file(texts) else {}),
        **({"validation": validation} if is_file(validation) else {}),
    }
    if clash := [
        name for name in ("sources", "teachers", "text", "student", "output", "combine") if name in options
    ]:
        raise RecipeError(f"amalgamate: {clash[0]} is an argument of its own, not an option")
    return parse_as(AmalgamateRecipe, content, "amalgamate")


def ensemble_recipe(
    base: str | Path | None,
    *,
    data: Any,
    out: str | Path,
    sources: str | Path | Sequence[str | Path] | None,
    validation: Any,
    texts: Any = None,
    options: Mapping[str, Any],
) -> EnsembleRecipe:
    """Returns the recipe that these arguments of `ensemble` spell; data in memory stays outside."""
    given = [sources] if isinstance(sources, str | Path) else sources
    content = {
        "base": None if base is None else str(base),
        "sources": None if given is None else [str(source) for source in given],
        "data": data if is_file(data) else None,
        "validation": validation if is_file(validation) else None,
        **({"text": texts} if are_files(texts) else {}),
        "output": str(out),
        **options,
    }
    if "method" not in content and (texts is not None or content.get("text")):
        content["method"] = TEACHING
    return parse_as(EnsembleRecipe, content, "ensemble")


LONGEST_PATH = 1024
"""Characters from which on a string is no path but a text."""


def are_files(texts: Any) -> bool:
    """Says whether texts are named by paths, one or several; a list of strings is texts, unless all of them exist."""
    if isinstance(texts, list | tuple) and texts:
        files = (Path(t).is_file() if isinstance(t, str) and len(t) < LONGEST_PATH else is_file(t) for t in texts)
        return all(files)
    return is_file(texts)


def merge_recipe(
    sources: Mapping[str, Any] | Sequence[str | Path],
    *,
    out: str | Path,
    method: str | None,
    data: Mapping[str, Any] | None,
    statistics: Mapping[str, str | Path] | None,
    base: str | Path | None,
    weights: Mapping[str, float] | None,
    tasks: Mapping[str, str] | None,
    evaluate: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    validation: Mapping[str, Any] | None = None,
    **settings: Any,
) -> tuple[MergeRecipe, dict[str, Any]]:
    """Returns the recipe that these arguments of `merge` spell, and the data that lives in memory."""
    named = options["labels"] if isinstance(options.get("labels"), Mapping) else None
    options = {key: value for key, value in options.items() if key != "labels" or named is None}
    shared = shared_tasks(tasks)
    described = describe_sources(sources, statistics=statistics, weights=weights, tasks=shared, labels=named)
    strangers = [name for name in data or {} if name not in described]
    if strangers:
        problems = (f"data for unknown source {name!r}{did_you_mean(name, described)}" for name in strangers)
        raise RecipeError(listed(problems))
    files, objects = split_data(described, data or {})
    # What is left at its default is not recorded as if it had been chosen.
    chosen = {k: v for k, v in settings.items() if v != MergeRecipe.model_fields[k].default}
    content = {
        "sources": {
            n: {**spec, **({"data": files[n]} if n in files else {})} for n, spec in described.items()
        },
        "base": None if base is None else str(base),
        "output": str(out),
        "evaluate": dict(evaluate or {}),
        **({"validation": dict(validation)} if validation else {}),
        **chosen,
    }
    recipe = parse_as(MergeRecipe, content, "merge")
    if method is None and not options:
        return recipe, objects
    name = method or ("fisher" if "importance" in options else AUTO)
    return parse_as(MergeRecipe, {**content, "method": {"name": name, **options}}, "merge"), objects


def comparison_recipe(
    sources: Mapping[str, Any] | Sequence[str | Path],
    *,
    out: str | Path,
    data: Mapping[str, Any] | None,
    test: Any,
    texts: Any,
    base: str | Path | None,
    tasks: Mapping[str, str] | None,
    options: Mapping[str, Any],
) -> tuple[CompareRecipe, dict[str, Any], dict[str, Any]]:
    """Returns the recipe that these arguments of `compare` spell, and the data and test rows that live in memory."""
    described = describe_sources(sources, tasks=shared_tasks(tasks), labels=options.get("labels"))
    if strangers := [name for name in data or {} if name not in described]:
        raise RecipeError(listed(f"data for unknown source {n!r}{did_you_mean(n, described)}" for n in strangers))
    files, objects = split_data(described, data or {})
    tests = {} if test is None else dict(test) if isinstance(test, Mapping) and "path" not in test else {ALL: test}
    held = {name: entry for name, entry in tests.items() if not is_file(entry)}
    content = {
        "sources": {
            n: {**spec, **({"data": files[n]} if n in files else {})} for n, spec in described.items()
        },
        "base": None if base is None else str(base),
        "test": {name: entry for name, entry in tests.items() if name not in held},
        **({"text": texts} if is_file(texts) else {}),
        "output": str(out),
        **{name: value for name, value in options.items() if name != "labels"},
    }
    return parse_as(CompareRecipe, content, "compare"), objects, held


ALL = "all"
"""What test rows are called that are given without a name."""


def shared_tasks(tasks: Mapping[str, str] | None) -> dict[str, str]:
    """Returns source name -> task name; `a,b,c` stands for three sources.

    Raises:
        RecipeError: a source that is given two tasks.
    """
    found: dict[str, str] = {}
    for names, task in (tasks or {}).items():
        for name in filter(None, map(str.strip, names.split(","))):
            if name in found:
                raise RecipeError(f"task of {name!r} is given twice: {found[name]!r} and {task!r}")
            found[name] = task
    return found


def describe_sources(
    sources: Mapping[str, Any] | Sequence[str | Path], **extras: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Returns sources as recipe entries, with statistics, weights and tasks put in theirs.

    Raises:
        RecipeError: an extra for a source that does not exist (did you mean).
    """
    if isinstance(sources, list | tuple) and all(isinstance(place, str | Path) for place in sources):
        sources = named_places(sources)
    if not isinstance(sources, Mapping):
        raise RecipeError(
            f"sources: expected a mapping of name to checkpoint, or a list of checkpoints, found "
            f"{type(sources).__name__}"
        )
    odd = [
        f"{n} is a {type(s).__name__}" for n, s in sources.items() if not isinstance(s, str | Path | Mapping)
    ]
    if odd:
        raise RecipeError(f"{listed(odd)}: expected a folder or a Hub id; save a model in memory first")
    described = {n: dict(s) if isinstance(s, Mapping) else {"model": str(s)} for n, s in sources.items()}
    for kind, values in extras.items():
        key = kind if kind in {"statistics", "labels"} else kind.removesuffix("s")
        for name, value in (values or {}).items():
            if name not in described:
                raise RecipeError(f"{key} for unknown source {name!r}{did_you_mean(name, described)}")
            described[name][key] = str(value) if isinstance(value, Path) else value
    return described


def split_data(
    described: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the data that a recipe can name (files, specifications) and the data that lives in memory."""
    files = {name: value for name, value in data.items() if name in described and is_file(value)}
    return files, {name: value for name, value in data.items() if name not in files}
