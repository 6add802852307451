"""Options of the command line are recipe fields: none is missing, all are explained, and they arrive."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from pydantic import BaseModel

from plait.cli.fields import field_options, kind_of
from plait.recipe import COMBINES, MergeRecipe, MethodSpec
from plait.registry import arguments_of

MODELS: list[type[BaseModel]] = [*COMBINES.values(), MethodSpec]
SPELLED = {
    "merge": {"sources", "name"},
    "amalgamate": {"sources"},
    "ensemble": {"base", "sources"},
    "compare": {"sources"},
}
"""What the shell gives as arguments, or under another name."""


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    from plait.cli import invoke

    assert invoke([command, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_described_and_has_a_subject(model: type[BaseModel]) -> None:
    described = arguments_of(model)
    listed = [name for names in model.PANELS.values() for name in names]  # type: ignore[attr-defined]
    fields = set(model.model_fields) - {"combine"}
    assert fields <= set(described)
    assert fields - {"name"} <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("command", COMBINES)
def test_every_field_is_an_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(command, capsys)
    models = [COMBINES[command], *([MethodSpec] if command == "merge" else [])]
    for name in {name for model in models for name in model.model_fields} - SPELLED[command] - {"combine"}:
        assert re.search(rf"--{name.replace('_', '-')}\b", text), name


def test_help_is_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("merge", capsys)
    sections = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    assert sections == [*MergeRecipe.PANELS, "Run", "Options"]


def test_help_names_no_method_but_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(help_of(command, capsys) for command in COMBINES)
    assert not {"karcher", "greedy", "codistillation", "bald", "uhc", "word-dropout", "pairwise"} & set(
        re.findall(r"[\w-]+", text)
    )


def test_types_defaults_and_limits() -> None:
    options = {option.name: option for option in field_options(MergeRecipe)}
    fact = options["refine"].annotation.__metadata__[0]
    assert (kind_of(MergeRecipe.model_fields["refine"].annotation)[0], fact.min, fact.max) == (int, 0, None)
    assert options["align_heads"].annotation.__metadata__[0].metavar == "[none|shift|ridge]"
    assert options["refine_rate"].annotation.__metadata__[0].help.endswith("Default: 0.0001.")
    assert {option.default for option in options.values()} == {None}


def test_what_is_said_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    from plait import api
    from plait.cli import invoke

    seen = []
    monkeypatch.setattr(api, "check", lambda recipe, **_: seen.append(recipe) or {})
    line = "merge a=x b=y -o /tmp/nothing-there --refine 2 --align-heads shift --merge-pooler --method ties --set"
    assert invoke([*line.split(), "density=0.5", "--seed", "3", "--dry-run"]) == 0
    (recipe,) = seen
    assert (recipe.refine, recipe.align_heads, recipe.merge_pooler) == (2, "shift", True)
    assert recipe.method.options == {"density": 0.5}
    assert recipe.method.seed == 3
    assert recipe.model_fields_set == {
        "sources", "base", "output", "evaluate", "refine", "align_heads", "merge_pooler", "method",
    }  # fmt: skip


def test_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    import plait
    from plait.cli import invoke

    assert invoke(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(plait.schema()))


def test_recipes_need_no_torch() -> None:
    code = "import sys; from plait.cli import invoke; invoke(['merge', '--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
