"""Recipes of mergekit as recipes of a merge: what a rule here can do is translated, the rest is named at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.boundary import parse_yaml, read_text
from plait.errors import RecipeError, RecipeProblems, did_you_mean
from plait.recipe.mergekit_methods import WEIGHTED, read_method, read_weights
from plait.recipe.mergekit_reader import Reader, read_inputs
from plait.recipe.naming import named_places

KEYS = {
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer",
}  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16")
SHARED = {"int8_mask"}
"""Settings that change memory and no result."""


def is_mergekit(content: Any) -> bool:
    """Says whether a mapping is a recipe of mergekit."""
    return isinstance(content, Mapping) and "merge_method" in content


def read_mergekit(path: str | Path, output: str | None = None) -> dict[str, Any]:
    """Returns the recipe of a merge that a file of mergekit describes, as plain data.

    Raises:
        RecipeProblems: everything in it that is not understood, or that no rule here does.
    """
    file = Path(path)
    if not file.is_file():
        raise RecipeProblems(str(file), ["no such file (expected a recipe of mergekit, in YAML)"])
    content = parse_yaml(read_text(file, error=RecipeError), file, error=RecipeError)
    if not is_mergekit(content):
        raise RecipeProblems(str(file), ["no merge_method: not a recipe of mergekit"])
    return translated(content, str(file), output)


def translated(content: Mapping[str, Any], where: str, output: str | None = None) -> dict[str, Any]:
    """Returns the recipe of a merge that a mapping of mergekit describes, as plain data.

    Args:
        content: what its YAML says.
        where: what messages call it.
        output: the folder to write; by default `merged-` and the file's name.

    Raises:
        RecipeProblems: everything in it that is not understood, or that no rule here does.
    """
    reader = Reader(content)
    for key in content:
        if key not in KEYS:
            reader.refuse(f"{key} is not understood{_instead(str(key))}")
    read_inputs(reader)
    method = read_method(reader)
    _check_parameters(reader)
    dtype, found = _dtype(reader), _sources(reader)
    _check_tokenizer(reader)
    if reader.problems:
        raise RecipeProblems(where, reader.problems)
    base = None if reader.base is None else reader.base.place
    return {
        "combine": "merge",
        "sources": found,
        **({"base": base} if base is not None else {}),
        "method": method,
        "output": output or f"merged-{Path(where).stem}",
        **({"dtype": dtype} if dtype else {}),
    }


def _instead(key: str) -> str:
    hints = {
        "modules": ": one part of a model merged by itself is not read",
        "chat_template": ": copy the template into the result's folder",
        "name": "",
    }
    return hints.get(key, did_you_mean(key, KEYS))


def _sources(reader: Reader) -> dict[str, dict[str, Any]]:
    """Returns the sources by names made of their folders, with their weights."""
    names = list(named_places(one.place for one in reader.inputs))
    return {
        name: {**one.described(), **weight}
        for name, one, weight in zip(names, reader.inputs, read_weights(reader), strict=True)
    }


def _check_parameters(reader: Reader) -> None:
    """Names the parameters that nobody has asked about."""
    known = reader.used | SHARED | ({"weight"} if reader.content.get("merge_method") in WEIGHTED else {"t"})
    for name in reader.globals:
        if name not in known:
            reader.refuse(f"parameters.{name} is not understood{did_you_mean(str(name), known)}")
    for one in reader.inputs:
        for name in one.parameters:
            if name not in known and name not in reader.globals:
                reader.refuse(f"{name} of {one.reference} is not understood{did_you_mean(str(name), known)}")


def _dtype(reader: Reader) -> str | None:
    """Returns the dtype of the result; everything is computed in float32."""
    found = reader.content.get("out_dtype") or reader.content.get("dtype")
    if found is not None and found not in DTYPES:
        reader.refuse(f"dtype {found}: one of {', '.join(DTYPES)} is expected")
    return None if found is None else str(found)


def _check_tokenizer(reader: Reader) -> None:
    """Names what is asked of the tokenizer beyond a source: it is that of the sources, which must agree."""
    told = reader.content.get("tokenizer")
    for key in set(told) - {"source"} if isinstance(told, Mapping) else ():
        reader.refuse(f"tokenizer.{key}: tokens are not changed by a merge here")
