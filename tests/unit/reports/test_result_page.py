"""Pages of single results: from records of every kind, and of a merge whose sources are still there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.cli import invoke
from plait.errors import SourceError
from plait.reports.record import read_record
from plait.reports.result_page import courses, result_page
from tests.models import save, texts, tiny
from tests.unit.reports.test_page import Reader

RECORDS = json.loads((Path(__file__).parent / "records_0_1.json").read_text())


@pytest.mark.parametrize("kind", [kind for kind in RECORDS if kind != "merged"])
def test_every_record_makes_a_page(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = RECORDS[kind]
    if kind == "student":
        taught = {"World": {"news": 3, "sports": 1}, "Tech": {}}
        record = record | {"who_taught_what": record["who_taught_what"] | {"labels": taught}}
    (tmp_path / "plait.json").write_text(json.dumps(record))
    (tmp_path / "README.md").write_text("# A card\n")
    monkeypatch.setattr("plait.api.pages.kind_of", lambda _: kind)  # the weights are not there, the record is
    file = plait.report(tmp_path)
    found = Reader(file.read_text())
    assert "Provenance" in found.words
    assert not found.having("script")
    sections = {a["id"] for a in found.having("section") if "id" in a}
    wanted = {"student": {"routing", "training"}, "ensemble": {"scores", "diversity", "training"}}
    assert wanted.get(kind, {"recipes"}) <= sections
    assert kind != "student" or "75.0 %" in found.words
    card = (tmp_path / "README.md").read_text()
    assert card.count("<!-- figures -->") == len(found.having("figure")[:1])
    plait.report(tmp_path)
    assert (tmp_path / "README.md").read_text() == card


def test_a_record_of_a_merge_tells_its_scores(tmp_path: Path) -> None:
    (tmp_path / "plait.json").write_text(json.dumps(RECORDS["merged"]))
    record: Any = read_record(tmp_path)
    page = result_page(vars(record) | {"tasks": {}}, "merged", "m", notes=["a note"])
    assert [chart.name for chart in page.charts if chart.name.startswith("scores")]
    assert page.notes[0] == "a note"


def test_rows_become_courses() -> None:
    rows = [
        {"member": 1.0, "epoch": 1.0, "step": 3, "loss": 0.5, "odd": 1.0},
        {"epoch": 2.0, "accuracy": 0.5, "kept": True},
    ]
    assert courses(rows) == {
        "member 1": [{"step": 3, "name": "loss", "value": 0.5}],
        "training": [{"epoch": 2.0, "name": "accuracy", "value": 0.5}],
    }


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a merge by mask nodes whose base, sources and statistics are there."""
    folder = tmp_path_factory.mktemp("merge")
    save(tiny("bert", "body", drift=0), folder / "base")
    statistics = {}
    for seed, name in enumerate("ab"):
        save(tiny("bert", seed=seed), folder / name)
        rows = [{"text": text, "label": i % 3} for i, text in enumerate(texts(6, seed=seed))]
        (folder / f"{name}.json").write_text(json.dumps(rows))
        statistics[name] = str(folder / f"{name}.safetensors")
        plait.estimate(folder / name, folder / f"{name}.json", out=statistics[name], importance="mask_nodes")
    plait.merge({n: str(folder / n) for n in "ab"}, method="fisher", importance="mask_nodes", statistics=statistics,
                base=str(folder / "base"), out=folder / "merged")  # fmt: skip
    return folder / "merged"


def test_a_merge_shows_where_its_sources_conflict_and_what_matters(merged: Path, tmp_path: Path, capsys: Any) -> None:
    assert invoke(["report", str(merged), "-o", str(tmp_path / "page"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said["page"]) == tmp_path / "page" / "index.html"
    assert {Path(f).stem for f in said["figures"]} >= {"conflict-cosine", "conflict-sign", "importance-1"}
    words = Reader(Path(said["page"]).read_text()).words
    assert "a – b" in words
    assert "added to the base" in words
    assert not (merged / "index.html").exists()


def test_sources_that_are_gone_or_changed_are_said(merged: Path, tmp_path: Path) -> None:
    save(tiny("bert", seed=9), merged.parent / "b")
    words = Reader(plait.report(merged, out=tmp_path / "one").read_text()).words
    assert "Where the sources conflict is not shown: b: no longer what was merged" in words
    (merged.parent / "b" / "model.safetensors").unlink()
    words = Reader(plait.report(merged, out=tmp_path / "two").read_text()).words
    assert "Where the sources conflict is not shown" in words


def test_what_has_no_page_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SourceError, match="holds nothing that Plait made; pages are made of comparisons, merged"):
        plait.report(tmp_path)
    save(tiny("bert", seed=1), tmp_path / "plain")
    assert invoke(["report", str(tmp_path / "plain")]) == 2
    assert "is an ordinary checkpoint" in capsys.readouterr().err
