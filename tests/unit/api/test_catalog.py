"""What `plait methods` says: when to use a method, which are defaults, and what each option takes."""

from __future__ import annotations

import json

import pytest

import plait
from plait.api.registries import KINDS, defaults
from plait.cli import invoke


def test_every_method_says_when_to_use_it() -> None:
    for name, about in plait.methods().items():
        assert about["when"].endswith("."), name
        assert len(about["when"]) <= 110, name


def test_defaults_exist_and_are_marked() -> None:
    for kind, names in defaults().items():
        assert all(name in KINDS[kind] for name in names), kind
    marked = {name for name, about in plait.methods().items() if about["default"]}
    assert {"actmerge", "regmean", "average", "joint gate auto", "objective muka", "ensemble camero"} <= marked
    assert plait.methods("regmean")["regmean"]["default"] == "with data of every source and no base"


def test_options_are_explained() -> None:
    for name, about in plait.methods().items():
        for option, facts in about["options"].items():
            assert set(facts) == {"type", "default", "limits", "meaning"}
            assert facts["meaning"], f"{name}: {option}"
    assert plait.methods("ties")["ties"]["options"]["density"] == {
        "type": "float", "default": 0.2, "limits": "0 to 1", "meaning": "share of each source's changes that is kept.",
    }  # fmt: skip


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["methods"]) == 0
    text = capsys.readouterr().out
    assert "actmerge *" in text
    assert "ensemble distilled *" in text
    assert invoke(["methods", "word-dropout"]) == 0
    text = capsys.readouterr().out
    assert "when to use it: Short texts" in text
    assert "above 0 and below 1" in text
    assert invoke(["methods", "ties", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ties"]["options"]["scope"]["type"] == "tensor | model"
