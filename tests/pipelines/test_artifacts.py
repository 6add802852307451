"""What lies at a path: one opener for everything that Plait writes, and for ordinary checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import plait
from plait import api
from plait.cli import invoke
from plait.errors import DataError, RecipeError, SourceError
from plait.reports.record import kind_of
from tests.models import save, texts, tiny

Paths = dict[str, str]


@pytest.fixture(scope="module")
def places(sources: Paths, data: Paths, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("artifacts")
    two = {name: sources[name] for name in ("mood", "type")}
    api.merge(two, method="average", out=folder / "merged")
    api.estimate(two["mood"], data["mood"], importance="diagonal", out=folder / "mood.safetensors")
    api.posteriors(two, texts=texts(6), out=folder / "store", passes=0)
    return {
        "merged": str(folder / "merged"),
        "statistics": str(folder / "mood.safetensors"),
        "posteriors": str(folder / "store"),
        "checkpoint": sources["mood"],
    }


@pytest.mark.parametrize("kind", ["merged", "statistics", "posteriors", "checkpoint"])
def test_everything_is_opened_by_one_function(places: Paths, kind: str) -> None:
    assert kind_of(places[kind]) == kind
    assert plait.open_artifact(places[kind]).artifact == kind
    assert plait.open_artifact(Path(places[kind])).artifact == kind


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        plait.open_artifact(tmp_path)
    (tmp_path / "plait.json").write_text("{", encoding="utf-8")
    for ask in (plait.open_artifact, plait.load, plait.inspect):
        with pytest.raises(SourceError, match=r"plait.json is damaged"):
            ask(tmp_path)


def test_what_answers_nothing_is_not_evaluated(places: Paths, data: Paths) -> None:
    for kind in ("statistics", "posteriors"):
        with pytest.raises(RecipeError, match="which answers nothing"):
            plait.evaluate(places[kind], data["mood"])
        with pytest.raises(SourceError, match="is not a merged checkpoint but"):
            plait.export(places[kind], Path(places[kind]).parent / "plain")


def test_a_merged_checkpoint_is_no_source(places: Paths, sources: Paths, tmp_path: Path) -> None:
    wanted = "again .*: a merged checkpoint has several heads; plait export one task of it first"
    with pytest.raises(RecipeError, match=wanted):
        plait.merge({"again": places["merged"], "type": sources["type"]}, method="average", out=tmp_path / "m")


def test_sources_are_found_from_wherever_one_stands(
    places: Paths, sources: Paths, data: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((Path(places["merged"]) / "plait.json").read_text(encoding="utf-8"))
    assert all(about["origin"].startswith("../") for about in record["sources"].values())
    monkeypatch.chdir(tmp_path)
    found = plait.evaluate(places["merged"], {"mood": data["mood"]})
    assert set(found.tasks["mood"].sources) == {"mood"}


def test_the_command_prints_what_it_finds(
    places: Paths, data: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("statistics", "merged"):
        assert invoke(["inspect", places[kind]]) == 0
        assert f"kind: {kind}" in capsys.readouterr().out
    assert invoke(["evaluate", places["merged"], "--data", f"mood={data['mood']}", "--quiet"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_merged_checkpoint_is_not_a_source(sources: Paths, tmp_path: Path) -> None:
    plait.merge(sources, method="average", out=tmp_path / "m")
    with pytest.raises(RecipeError, match="plait export one task"):
        plait.merge({"a": str(tmp_path / "m"), "b": sources["mood"]}, method="average", out=tmp_path / "n")


def test_evaluating_a_body_and_columns(sources: Paths, tmp_path: Path) -> None:
    body = save(tiny("bert", "body"), tmp_path / "b")
    with pytest.raises(DataError, match="without a head"):
        plait.evaluate(str(body), {"text": texts(3), "label": [0, 1, 0]})
    found = plait.evaluate(sources["type"], {"text": texts(3), "label": [0, 1, 0]})
    assert found.tasks["model"].examples == 3
