"""The record `plait.json`: one schema, written and read in one place; records of 0.1 still open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plait.errors import SourceError
from plait.reports.record import (
    FORMAT,
    Manifest,
    Record,
    kind_of,
    models_from,
    origin_beside,
    origin_from,
    read_manifest,
    read_record,
    refuse_several,
    report_of,
    write_record,
)

OLD: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "records_0_1.json").read_text(encoding="utf-8")
)
"""A `plait.json` of every kind that Plait 0.1 wrote, paths shortened."""


def put(folder: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "plait.json").write_text(text, encoding="utf-8")
    return folder


def folder_of(place: Path, kind: str) -> Path:
    """Fills a folder as a result of that kind does."""
    if kind != "members":
        model = "plait_ensemble" if kind == "ensemble" else "bert"
        (place / "config.json").write_text(json.dumps({"model_type": model}), encoding="utf-8")
    return put(place, OLD[kind])


@pytest.mark.parametrize("kind", OLD)
def test_records_of_0_1_open(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path, kind)
    assert kind_of(folder) == kind
    found = read_record(folder)
    if kind == "merged":
        manifest = read_manifest(folder)
        assert {name: list(task.sources) for name, task in manifest.tasks.items()} == {
            name: task["sources"] for name, task in OLD[kind]["tasks"].items()
        }
        assert manifest.sources == OLD[kind]["sources"]
        return
    assert isinstance(found, Record)
    renamed = {"kind": "head_kind"}
    for name, value in OLD[kind].items():
        if name != "made_by":
            assert found.report()[renamed.get(name, name)] == value, name


@pytest.mark.parametrize("kind", ["student", "ensemble", "members", "finetuned"])
def test_what_is_written_is_read(tmp_path: Path, kind: Any) -> None:
    folder = folder_of(tmp_path, kind)
    before = report_of(folder)
    write_record(folder, kind, {name: value for name, value in before.items() if name != "kind"})
    assert report_of(folder) == before
    written = json.loads((folder / "plait.json").read_text(encoding="utf-8"))
    assert (written["format"], written["kind"]) == (FORMAT, kind)


def test_a_merge_is_upgraded_when_written(tmp_path: Path) -> None:
    manifest = read_manifest(folder_of(tmp_path, "merged"))
    manifest.write(tmp_path)
    written = json.loads((tmp_path / "plait.json").read_text(encoding="utf-8"))
    assert (written["format"], written["kind"]) == (FORMAT, "merged")
    assert read_manifest(tmp_path) == manifest
    assert isinstance(read_record(tmp_path), Manifest)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "plait.json is damaged .Expecting"),
        ("[]", "plait.json is damaged: holds a list"),
        ({"format": "two"}, "format is 'two'"),
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1}, this Plait reads up to {FORMAT}"),
        ({"format": FORMAT, "kind": "cake"}, "plait.json is damaged: kind is 'cake', expected merged, student"),
        ({"made_by": "amalgamate"}, "plait.json is damaged .*teachers is missing"),
        ({**OLD["student"], "labels": 3}, "plait.json is damaged .labels is 3"),
        ({**OLD["student"], "teachers": {"a": {"origin": 3}}}, r"teachers\.a\.origin is 3"),
        ({**OLD["ensemble"], "recipe": {"method": []}}, r"damaged .recipe\.method is a list"),
        ({**OLD["ensemble"], "members": "many"}, "damaged .members is 'many'"),
        ({**OLD["merged"], "tasks": {"a": {"name": "a"}}}, r"damaged .*tasks\.a\.architecture is missing"),
    ],
)
def test_damage_is_one_line_with_file_and_field(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        read_record(put(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_base_alone_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    assert kind_of(put(tmp_path, {"base": "org/base"})) == "checkpoint"


def test_what_is_several_models_is_no_source(tmp_path: Path) -> None:
    kinds = ("merged", "ensemble", "members", "student", "one_model", "finetuned")
    for kind in kinds:
        (tmp_path / kind).mkdir()
        folder_of(tmp_path / kind, kind)
    single = {kind: tmp_path / kind for kind in kinds[3:]}
    refuse_several(single)
    for kind in kinds[:3]:
        with pytest.raises(Exception, match=f"{kind}: .*name one|{kind}: .*plait export"):
            refuse_several({**single, kind: tmp_path / kind})


def test_what_is_no_place_has_no_kind(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("text", encoding="utf-8")
    for place in (tmp_path, tmp_path / "none", tmp_path / "some.txt", "org/model", {"text": []}, None):
        assert kind_of(place) is None


def test_models_are_named_relative_to_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ckpt/a", "out/result", "elsewhere", "out/result/inside"):
        (tmp_path / name).mkdir(parents=True)
    result = tmp_path / "out" / "result"
    assert origin_beside(str(tmp_path / "ckpt" / "a"), result) == "../../ckpt/a"
    assert origin_beside(str(result / "inside"), result) == "./inside"
    monkeypatch.chdir(tmp_path)
    assert origin_beside("ckpt/a", "out/result") == "../../ckpt/a"
    assert origin_beside("org/model", result) == "org/model"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert origin_from(result, "../../ckpt/a") == str((tmp_path / "ckpt" / "a").resolve())
    # What 0.1 wrote, and what is gone, stays as it is.
    for origin in ("ckpt/a", "/abs/a", "org/model", "../gone"):
        assert origin_from(result, origin) == origin
    assert models_from(result, {"m": {"origin": None, "digest": "0"}}) == {"m": {"origin": None, "digest": "0"}}
