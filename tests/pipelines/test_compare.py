"""A comparison end to end: on the command line, in Python and by recipe, with real merges of tiny models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import plait
from plait.cli import invoke
from plait.comparison import run as running
from plait.comparison.result import Comparison
from plait.merging.rule import RULES
from tests.comparing import rows, source, world

TASKS = {"mood": ("bad", "good", "mixed"), "topic": ("art", "food")}
METHODS = "average,ties,regmean"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("compare"), TASKS)


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def words(*more: str, out: str) -> list[str]:
    parts = {"data": "train", "test": "test"}
    given = [f"--{kind}={name}={name}.{part}.jsonl" for name in TASKS for kind, part in parts.items()]
    return ["compare", *(f"{name}={name}" for name in TASKS), *given, "-o", out, "-q", *more]


def arguments(**more: Any) -> dict[str, Any]:
    return {
        "sources": {name: name for name in TASKS},
        "data": {name: f"{name}.train.jsonl" for name in TASKS},
        "test": {name: f"{name}.test.jsonl" for name in TASKS},
        **more,
    }


@pytest.fixture(scope="module")
def compared(place: Path) -> Path:
    out = place / "shared"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert invoke(words("--methods", METHODS, out="shared")) == 0
    return out


def answer(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return found


def by_id(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in answer(folder)["candidates"]}


def test_the_answer_has_a_row_for_each_candidate(compared: Path) -> None:
    found = by_id(compared)
    assert list(found) == ["separate", "merge/regmean", "merge/average", "merge/ties"]
    for row in found.values():
        assert row["status"] == "done"
        assert set(row["scores"]) == set(TASKS)
        assert row["parameters"] > 0
        assert row["bytes"] > 4 * row["parameters"] * 0.9
        assert row["latency"]["1"] > row["latency"]["32"] > 0
        assert row["calibration"]["mood"]["bins"]
    assert found["separate"]["mean_relative"] == 1
    assert found["separate"]["scores"]["mood"]["value"] == pytest.approx(44 / 48)


def test_a_row_is_what_the_single_commands_say(compared: Path, tmp_path: Path) -> None:
    row = by_id(compared)["merge/ties"]
    merged = plait.run({**row["recipe"], "output": str(tmp_path / "ties")})
    scored = plait.evaluate(merged, {name: f"{name}.test.jsonl" for name in TASKS})
    for task, score in row["scores"].items():
        assert score["value"] == pytest.approx(scored[task]["accuracy"])
        assert score["relative"] == pytest.approx(scored.tasks[task].relative)
    assert row["mean_relative"] == pytest.approx(scored.mean_relative)


def test_the_recommended_model_lies_there_with_its_recipe(compared: Path) -> None:
    found = plait.open_artifact(compared)
    assert isinstance(found, Comparison)
    chosen = found.recommended
    assert chosen is not None
    assert found.best == chosen or found.best in found.report["recommended"]["level_with"]
    assert (compared / "recipes" / f"{chosen}.yaml").is_file()
    recipe = yaml.safe_load((compared / "recipes" / f"{chosen}.yaml").read_text())
    assert recipe == found.recipe()
    assert found.path() is not None
    assert plait.load(found.path() or "").tasks == tuple(TASKS)
    kept = [path.name for path in (compared / "candidates").iterdir()]
    assert chosen.replace("/", "-") in kept
    assert len(kept) < 3


def test_the_second_run_computes_nothing(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = answer(compared)
    monkeypatch.setattr(running.Trial, "every", None)
    assert invoke(words("--methods", METHODS, out="shared")) == 0
    assert answer(compared) == before


def test_what_is_finished_is_not_made_again(
    compared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(compared, tmp_path / "shared")
    made = []
    monkeypatch.setattr("plait.comparison.scoring.make", lambda job, candidate: made.append(candidate.id) or 0.1)
    monkeypatch.setitem(__import__("plait.comparison.scoring", fromlist=["OF_WAY"]).OF_WAY, "merge", None)
    found = plait.compare(**arguments(out=tmp_path / "shared", methods="average,ties,regmean,karcher"))
    assert made == ["merge/karcher"]
    assert "karcher" in next(iter(found.failed))
    assert len(found.table) == 5


def test_a_folder_of_other_data_is_not_taken_for_this_one(place: Path, tmp_path: Path) -> None:
    """Data A, then B, then A again in one folder: the model that is handed out is that of A."""
    out, others = tmp_path / "c", {name: f"{name}.test.jsonl" for name in TASKS}
    told: dict[str, Any] = {"methods": ["regmean"], "only": ["merge"], "out": out, "keep": "all"}
    weights = []
    for data in ({}, {"data": others, "test": {name: f"{name}.train.jsonl" for name in TASKS}}, {}):
        found = plait.compare(**{**arguments(), **told, **data})
        weights.append(load_file(Path(found.path("merge/regmean")) / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_candidate_that_fails_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: Any, **__: Any) -> torch.Tensor:
        raise ValueError("out of luck")

    entry = RULES["ties"]
    monkeypatch.setitem(RULES._entries, "ties", replace(entry, function=broken))
    out = tmp_path / "failing"
    assert invoke(words("--methods", "average,ties", out=str(out))) == 3
    assert "failed: merge/ties: out of luck" in capsys.readouterr().out
    assert {name: row["status"] for name, row in by_id(out).items()} == {
        "separate": "done", "merge/average": "done", "merge/ties": "failed",
    }  # fmt: skip
    monkeypatch.setitem(RULES._entries, "ties", entry)
    assert invoke(words("--methods", "average,ties", out=str(out))) == 0
    assert by_id(out)["merge/ties"]["status"] == "done"


def test_a_dry_run_says_what_each_takes_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert invoke(words("--dry-run", "--json", out=str(tmp_path / "none"))) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
    rows = {row["candidate"]: row for row in plan["candidates"]}
    merges = {name.partition("/")[2] for name in rows if name.startswith("merge/")}
    assert merges == {*RULES, "heads", "refine"}
    assert all(row["estimated_seconds"] > 0 and row["estimated_bytes"] > 0 for row in rows.values() if row["tried"])
    assert not rows["amalgamate/auto"]["tried"]
    assert "left out by default" in rows["amalgamate/auto"]["why"]
    assert plan["possible"]["ensemble"].startswith("no: ")


def test_a_budget_leaves_out_what_does_not_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert invoke(words("--budget", "0.01s", out=str(tmp_path / "o"))) == 2
    said = capsys.readouterr().err
    assert "budget 0.01s is too small for anything" in said
    assert "takes about" in said
    assert invoke(words("--budget", "4s", "--dry-run", "--json", out=str(tmp_path / "o"))) == 0
    plan = json.loads(capsys.readouterr().out)
    tried = [row["candidate"] for row in plan["candidates"] if row["tried"]]
    assert "separate" in tried
    assert len(tried) < len(plan["candidates"])
    assert any("of the budget of 4s are left" in row.get("why", "") for row in plan["candidates"])


def test_a_recipe_compares_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {
        "combine": "compare",
        "sources": {name: {"model": name, "data": f"{name}.train.jsonl"} for name in TASKS},
        "test": {name: f"{name}.test.jsonl" for name in TASKS},
        "methods": ["average"],
        "output": str(tmp_path / "by-recipe"),
    }
    file = tmp_path / "compare.yaml"
    file.write_text(yaml.safe_dump(recipe))
    assert invoke(["check", str(file), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["combine"] == "compare"
    assert invoke(["run", str(file), "-q"]) == 0
    assert invoke(["compare", str(file), "--methods", "ties", "-o", str(tmp_path / "other"), "-q"]) == 0
    assert list(by_id(tmp_path / "by-recipe")) == ["separate", "merge/average"]
    assert list(by_id(tmp_path / "other")) == ["separate", "merge/ties"]
    assert invoke(["inspect", str(tmp_path / "other"), "--json", "-q"]) == 0


def test_rows_that_are_given_alone_are_cut(tmp_path: Path) -> None:
    given = {name: f"{name}.train.jsonl" for name in TASKS}
    found = plait.compare({n: n for n in TASKS}, data=given, out=tmp_path / "cut", methods="regmean")
    tasks = {task["name"]: task for task in found.report["tasks"]}
    assert {task["test_from"] for task in tasks.values()} == {"cut from data"}
    assert {task["overlap"] for task in tasks.values()} == {0}
    assert sum("kept apart to test on" in note for note in found.report["notes"]) == 2
    kept = (tmp_path / "cut" / "data" / "mood.jsonl").read_text().splitlines()
    assert 0 < len(kept) <= 24
    assert found.recipe("merge/regmean")["sources"]["mood"]["data"]["path"].endswith("cut/data/mood.jsonl")


def test_test_rows_that_stand_in_the_data_are_counted(tmp_path: Path) -> None:
    given = arguments(out=tmp_path / "leak", methods="average")
    given["test"] = {**given["test"], "mood": "mood.train.jsonl"}
    found = plait.compare(**given)
    assert next(task["overlap"] for task in found.report["tasks"] if task["name"] == "mood") == 48
    assert any("48 of the 48 test rows also stand in the data" in note for note in found.report["notes"])


def test_without_data_for_a_task_the_rest_is_said(tmp_path: Path) -> None:
    given: dict[str, Any] = {"test": {"mood": "mood.test.jsonl"}, "methods": "average,regmean,actmerge"}
    found = plait.compare({n: n for n in TASKS}, out=tmp_path / "part", **given)
    rows = {row["id"]: row for row in found.report["candidates"]}
    assert set(rows["merge/average"]["scores"]) == {"mood"}
    assert rows["merge/actmerge"]["status"] == "done"
    assert rows["merge/regmean"]["status"] == "skipped"
    assert "needs texts of mood, topic" in rows["merge/regmean"]["reason"]
    assert any(note.startswith("topic: no data and no test rows") for note in found.report["notes"])


def test_a_folder_of_something_else_is_left_alone(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(words(out="mood")) == 2
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    assert invoke(words(out=str(tmp_path / "notes"))) == 2
    assert "holds no comparison" in capsys.readouterr().err
    model = source(tmp_path, "other", TASKS["mood"], seed=9)
    rows(model, tmp_path / "other.jsonl", 48, seed=9)
    line = ["compare", f"mood={tmp_path}/other", "topic=topic", "--test", f"mood={tmp_path}/other.jsonl",
            "--test", "topic=topic.test.jsonl", "-o", "shared", "-q"]  # fmt: skip
    assert invoke(line) == 2
    assert "holds a comparison of other sources (mood differ)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["compare", "a=mood", "-o", "x"], "there is nothing to combine"),
        (["compare", "a=mood", "b=topic", "-o", "x"], "nothing can be scored"),
        (["compare", "a=mood", "b=bert-base", "-o", "x"], "has no head"),
        (["compare", "mood=mood", "topic=topic"], "no output given"),
        (["compare", "mood=mood", "topic=topic", "--test", "topik=mood.test.jsonl", "-o", "x"], "call it mood"),
        (["compare", "mood=mood", "topic=topic", "--data", "mod=x", "-o", "x"], "did you mean 'mood'"),
    ],
)
def test_one_clear_line(line: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*line, "-q"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_methods_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(words("--methods", "regmeen", out="x")) == 2
    assert "no method 'regmeen' to compare (did you mean 'regmean'" in capsys.readouterr().err
    assert invoke(words("--only", "ensemble", out="x")) == 2
    assert "members answer one task" in capsys.readouterr().err


def test_python_says_what_the_page_says(compared: Path, tmp_path: Path) -> None:
    found = Comparison(compared)
    assert found.table.loc["separate", "mean_relative"] == 1
    assert found.table["mean_relative"].is_monotonic_decreasing
    assert found.best in found.table.index
    assert found.recommended in found._repr_html_()
    saved = found.save(tmp_path / "chosen", "merge/ties")
    assert plait.load(saved).method == "ties"
    with pytest.raises(plait.PlaitError, match="did you mean 'merge/ties'"):
        found.recipe("merge/tees")
    with pytest.raises(plait.PlaitError, match="separate has no recipe"):
        found.save(tmp_path / "none", "separate")


def test_the_page_says_why(compared: Path) -> None:
    page = (compared / "index.html").read_text()
    assert Comparison(compared).recommended in page
    assert (compared / "README.md").is_file()
    found = answer(compared)
    assert [len(layer) for layer in found["importance"]["mood"]["heads"]] == [4, 4]
    (pair,) = found["conflicts"]["pairs"]
    assert (pair["a"], pair["b"]) == ("mood", "topic")
    assert len(pair["cosine"]) == len(found["conflicts"]["layers"])


def test_rows_of_every_candidate_are_kept(compared: Path) -> None:
    for row in answer(compared)["candidates"]:
        with np.load(compared / "cells" / f"{row['cell']}.npz") as archive:
            assert {key.rpartition("|")[2] for key in archive.files} == set(TASKS)
            assert all(archive[key].shape == (48, 2) for key in archive.files)
