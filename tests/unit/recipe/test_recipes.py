"""Recipes: what is accepted, what is refused, and that nothing is loaded to find out."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from plait.errors import RecipeError
from plait.recipe import AmalgamateRecipe, parse_recipe, read_recipe, to_yaml

EXAMPLE = """
combine: merge
sources:
  sst2: {model: ckpt/sst2, data: sst2/train.parquet}
  trec: {model: ckpt/trec, data: trec/train.parquet}
method: {name: fisher, importance: mask_nodes, mapping: paper, labels: given, normalize: none, examples: 256}
output: merged
"""


def test_documented_example_parses(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(EXAMPLE)
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert list(recipe.sources) == ["sst2", "trec"]
    assert recipe.sources["sst2"].data is not None
    assert recipe.sources["sst2"].data.path == "sst2/train.parquet"
    assert recipe.resolved_method().importance == "mask_nodes"
    assert recipe.resolved_method().normalize == "none"


def test_yaml_round_trip() -> None:
    recipe = parse_recipe(yaml.safe_load(EXAMPLE))
    assert parse_recipe(yaml.safe_load(to_yaml(recipe))) == recipe


def test_short_forms_and_dashes() -> None:
    recipe = parse_recipe({"sources": {"a": "x", "b": "y"}, "method": "task-arithmetic", "output": "o"})
    assert recipe.sources["a"].model == "x"
    assert recipe.resolved_method().name == "task_arithmetic"


def test_default_method_depends_on_data() -> None:
    bare = parse_recipe({"sources": {"a": "x", "b": "y"}, "output": "o"})
    assert bare.resolved_method().name == "average"
    assert bare.resolved_method({"a": 1, "b": 1}).name == "regmean"
    half = parse_recipe({"sources": {"a": {"model": "x", "data": "d"}, "b": "y"}, "output": "o"})
    assert half.resolved_method().name == "average"
    assert bare.resolved_method(base=True).name == "actmerge"
    auto = parse_recipe({"sources": {"a": "x", "b": "y"}, "output": "o", "method": {"examples": 8}})
    assert auto.open
    assert auto.resolved_method().examples == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sources": {"a": "x"}}, "output is missing"),
        (
            {"sources": {"a": "x"}, "output": "o", "methd": "average"},
            "unknown key 'methd' (did you mean 'method'?",
        ),
        (
            {"sources": {"a": {"model": "x", "dta": "d"}}, "output": "o"},
            "unknown key 'sources.a.dta' (did you mean 'data'?",
        ),
        (
            {"sources": {"a": {"model": "x", "data": {"path": "d", "txt": "t"}}}, "output": "o"},
            "(did you mean 'text'?",
        ),
        ({"sources": {}, "output": "o"}, "sources is {}: dictionary should have at least 1 item"),
        (
            {"combine": "marge", "sources": {"a": "x"}, "output": "o"},
            "unknown combine 'marge' (did you mean 'merge'?",
        ),
        ({"sources": {"a": {"model": "x", "weight": -1}}, "output": "o"}, "sources.a.weight"),
        ({"sources": {"a": {"model": "x", "weight": float("nan")}}, "output": "o"}, "sources.a.weight"),
        (
            {"sources": {"a": "x"}, "output": "o", "method": {"name": "fisher", "mapping": "papr"}},
            "method.mapping",
        ),
        (
            {"sources": {"a": "x"}, "output": "o", "method": {"name": "fisher", "examples": 0}},
            "method.examples",
        ),
        ({"sources": {"../a": "x"}, "output": "o"}, "it names a folder"),
        ({"sources": {"a": {"model": "x", "task": "a/b"}}, "output": "o"}, "it names a folder"),
        ({"sources": {"a": None}, "output": "o"}, "sources.a is None (expected a mapping)"),
        (
            {"sources": {"a": "x"}, "output": "o", "dtype": "float23"},
            "dtype is 'float23' (did you mean 'float32'?",
        ),
        ("text", "expected a mapping with combine, sources and output, found str"),
    ],
)
def test_refused(content: object, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_problems_at_once() -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'x'.*output"):
        parse_recipe({"sources": {"a": "m"}, "x": 1})


def test_not_a_file_and_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe at"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="is not YAML"):
        read_recipe(tmp_path / "bad.yaml")


def test_keys_given_twice(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("sources:\n  a: x\n  a: y\noutput: o\n")
    with pytest.raises(RecipeError, match="a is given twice in the mapping at line 2"):
        read_recipe(tmp_path / "r.yaml")


def test_numbers_that_yaml_takes_for_texts() -> None:
    recipe = parse_recipe(
        {"sources": {"a": "x"}, "output": "o", "method": {"name": "ties", "scale": "1e-1", "scope": "model"}}
    )
    assert recipe.resolved_method().options == {"scale": 0.1, "scope": "model"}


def test_an_amalgamation() -> None:
    content = {
        "combine": "amalgamate", "teachers": {"a": "x", "b": {"model": "y", "revision": "r"}},
        "texts": "t.txt", "objective": "uhc", "gate": "max-logit", "output": "out/student",
    }  # fmt: skip
    recipe = parse_recipe(content)
    assert isinstance(recipe, AmalgamateRecipe)
    assert recipe.sources["b"].revision == "r"
    assert recipe.text is not None
    assert recipe.gate is not None
    assert (recipe.text.path, recipe.gate.name, recipe.objective.name) == ("t.txt", "max_logit", "uhc")
    assert recipe.store_folder() == Path("out/student.posteriors")
    assert parse_recipe(yaml.safe_load(to_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gaet": "muka"}, "unknown key 'gaet' (did you mean 'gate'?"),
        ({"sources": {"a": {"modle": "x"}}}, "unknown key 'sources.a.modle' (did you mean 'model'?"),
        ({"target": "sofd"}, "target is 'sofd' (did you mean 'soft'?"),
        ({"temperature": 0}, "temperature"),
        ({"passes": -1}, "passes"),
        ({"dropout": 1.0}, "dropout"),
        ({"epochs": float("nan")}, "epochs"),
        ({"held_back": 1}, "held_back"),
    ],
)
def test_an_amalgamation_refused(change: dict[str, object], message: str) -> None:
    content = {"combine": "amalgamate", "sources": {"a": "x"}, "output": "o", **change}
    with pytest.raises(RecipeError) as caught:
        parse_recipe(content)
    assert message in str(caught.value)


NAMES = {"news": ("World", "Business"), "sports": ("Sports", "Tech")}


def test_a_recipe_that_does_not_say_what_it_combines() -> None:
    told = {"sources": NAMES, "text": "t.txt", "student": "s", "output": "o"}
    with pytest.raises(
        RecipeError, match=r"combine is missing, so it is read as merge.*keys of amalgamate\)"
    ):
        parse_recipe(told)
    with pytest.raises(RecipeError, match="keys of ensemble"):
        parse_recipe({"base": "b", "from": ["a"], "alpha": 1, "output": "o"})
    with pytest.raises(RecipeError) as plain:
        parse_recipe({"sources": {"a": "x"}, "outptu": "o"})
    assert "combine is missing" not in str(plain.value)
