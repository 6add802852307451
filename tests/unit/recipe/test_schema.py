"""The JSON schema of recipes: what Plait accepts it accepts, and what a method has not it refuses."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import plait
from plait.recipe import COMBINES, parse_recipe
from tests.models import save, tiny

FILES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))
MERGE: dict[str, Any] = {"sources": {"a": "x"}, "output": "o"}
AMALGAMATE: dict[str, Any] = {"combine": "amalgamate", "sources": {"a": "x"}, "output": "o"}
ENSEMBLE: dict[str, Any] = {"combine": "ensemble", "base": "x", "output": "o"}


@cache
def validator() -> Draft202012Validator:
    found = plait.schema()
    Draft202012Validator.check_schema(found)
    json.dumps(found, allow_nan=False)
    return Draft202012Validator(found)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipes_that_come_with_plait(file: Path) -> None:
    validator().validate(yaml.safe_load(file.read_text()))


GOOD = [
    MERGE,
    {**MERGE, "method": "task-arithmetic"},
    {**MERGE, "method": {"examples": 8, "ridge": 0.1}},
    {**MERGE, "method": {"name": "fisher", "importance": "mask-nodes", "mapping": "structural", "floor": 0}},
    {**MERGE, "method": {"name": "regmean", "forward": True, "scale_grams": "none"}},
    {**MERGE, "sources": {"a": {"model": "x", "data": {"path": "d", "text": "t"}, "weight": 0.5}, "b": "y"}},
    {"combine": "amalgamate", "teachers": {"a": "x"}, "texts": "t.txt", "gate": "max-logit", "output": "o"},
    {**AMALGAMATE, "objective": {"temperature": 2}, "gate": {"name": "base", "neighbours": 3}},
    {**AMALGAMATE, "gate": "auto", "margin": False},
    {**ENSEMBLE, "method": {"name": "lora", "rank": 4, "encoder": "frozen"}, "shared_layers": 2},
    {"combine": "ensemble", "from": ["x", "y"], "output": "o", "text": ["a.txt", {"path": "b", "text": "t"}]},
    {**ENSEMBLE, "perturbation": {"name": "word-dropout", "rate": 0.2}, "consistency": "pairwise"},
]
BAD = [
    {"sources": {"a": "x"}},
    {"output": "o"},
    {**MERGE, "methd": "average"},
    {**MERGE, "method": "fischer"},
    {**MERGE, "method": {"name": "ties", "densty": 0.2}},
    {**MERGE, "method": {"name": "ties", "density": 2}},
    {**MERGE, "method": {"name": "ties", "importance": "diagonal"}},
    {**MERGE, "method": {"name": "fisher", "importance": "gram"}},
    {**MERGE, "dtype": "float23"},
    {**MERGE, "sources": {"a": {"model": "x", "dta": "d"}}},
    {**AMALGAMATE, "gate": {"name": "auto", "neighbours": 3}},
    {**AMALGAMATE, "gate": {"name": "base", "neighbours": 1.5}},
    {**AMALGAMATE, "objective": {"selcted": 1}},
    {**AMALGAMATE, "members": 4},
    {"combine": "ensemble", "output": "o"},
    {**ENSEMBLE, "method": {"name": "hydra", "start": "soup"}},
    {**ENSEMBLE, "perturbation": {"name": "gaussian", "strength": 0}},
    {**ENSEMBLE, "combine": "marge"},
]


@pytest.mark.parametrize("content", GOOD)
def test_accepted(content: dict[str, Any]) -> None:
    parse_recipe(content)
    validator().validate(content)


@pytest.mark.parametrize("content", BAD)
def test_refused(content: dict[str, Any]) -> None:
    assert not validator().is_valid(content)


def test_every_method_is_named_with_its_options() -> None:
    text = json.dumps(plait.schema())
    for key, method in plait.methods().items():
        if key == "importance gram":  # what regmean needs, which no recipe names
            continue
        assert json.dumps(key.rpartition(" ")[2]) in text, key
        assert all(f'"{option}"' in text for option in method["options"]), key


def test_every_field_is_described() -> None:
    definitions = plait.schema()["$defs"]
    for model in (*(m.__name__ for m in COMBINES.values()), "DataSpec", "SourceSpec", "TeacherSpec"):
        for name, about in definitions[model]["properties"].items():
            assert about.get("description"), f"{model}.{name}"


def test_the_resolved_recipe_of_a_merge(tmp_path: Path, sources: dict[str, str], data: dict[str, str]) -> None:
    two = {name: sources[name] for name in ("mood", "type")}
    method = {"importance": "mask_nodes", "examples": 4, "max_length": 8}
    made = plait.merge(two, method="fisher", data={n: data[n] for n in two}, out=tmp_path / "out", **method)
    validator().validate(dict(made.manifest.recipe))


def test_the_resolved_recipe_of_an_amalgamation(tmp_path: Path, sources: dict[str, str]) -> None:
    from plait.amalgamation.plan import plan

    (tmp_path / "texts.txt").write_text("good film\nbad book\ndull song\nquick food\n")
    content = {
        "combine": "amalgamate", "sources": {name: sources[name] for name in ("mood", "type")}, "student": "mood",
        "text": str(tmp_path / "texts.txt"), "gate": "mahalanobis", "output": str(tmp_path / "out"),
        "rename": {f"type.sequence-{i}": f"other-{i}" for i in range(2)},
    }  # fmt: skip
    recipe: Any = parse_recipe(content)
    resolved = plan(recipe).resolved().model_dump(mode="json", exclude_none=True)
    assert resolved["gate"]["shrinkage"] == 0.1
    validator().validate(resolved)


def test_the_resolved_recipe_of_an_ensemble(tmp_path: Path, data: dict[str, str]) -> None:
    from plait.ensembles.plan import plan

    base = str(save(tiny("bert", "body"), tmp_path / "base"))
    given = {"base": base, "data": data["mood"], "batch_size": 4, "output": str(tmp_path / "out")}
    recipe: Any = parse_recipe({**ENSEMBLE, **given})
    validator().validate(plan(recipe).resolved().model_dump(mode="json", exclude_none=True))
