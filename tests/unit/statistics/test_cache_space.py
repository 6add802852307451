"""The cache of statistics: its size, what is removed first, and a limit that is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import plait
from plait.api import check
from plait.cli import invoke
from plait.errors import RecipeError
from plait.statistics import cache
from plait.statistics.cache_space import LIMIT, bytes_of, cache_folder, keep_within_limit, kept, trim
from tests.conftest import write_rows


@pytest.fixture
def four() -> list[str]:
    folder = cache_folder()
    folder.mkdir(parents=True)
    for age, name in enumerate("abcd"):
        file = folder / f"{name}.safetensors"
        file.write_bytes(b"0" * 1000)
        os.utime(file, (1000 + age, 1000 + age))
    return list("abcd")


def names() -> list[str]:
    return [one.file.stem for one in kept()]


@pytest.mark.parametrize(
    ("size", "count"), [("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), ("1.5K", 1500), (7, 7), ("12B", 12)]
)
def test_sizes(size: str | int, count: int) -> None:
    assert bytes_of(size) == count


def test_no_size() -> None:
    with pytest.raises(RecipeError, match="such as 500MB or 2GB"):
        bytes_of("much")


def test_the_longest_unused_goes_first(four: list[str]) -> None:
    assert [one.file.stem for one in trim("2.5K")] == ["a", "b"]
    assert names() == ["c", "d"]


def test_a_limit_is_kept(four: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    keep_within_limit()
    assert names() == four
    monkeypatch.setenv(LIMIT, "1000")
    keep_within_limit()
    assert names() == ["d"]


def test_a_limit_that_is_no_size_is_said_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sources: dict[str, str]
) -> None:
    monkeypatch.setenv(LIMIT, "lots")
    said = r"^environment variable PLAIT_CACHE_LIMIT: size 'lots': expected a number with a unit"
    monkeypatch.setattr(cache, "estimated", lambda *_: pytest.fail("statistics were estimated first"))
    two = {name: sources[name] for name in ("mood", "type")}
    data = {"text": ["a", "b"], "label": [0, 1]}
    with pytest.raises(RecipeError, match=said):
        plait.merge(two, method="fisher", data=dict.fromkeys(two, data), out=tmp_path / "merged")
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    recipe = {"method": "fisher", "sources": {n: {"model": m, "data": str(file)} for n, m in two.items()}}
    with pytest.raises(RecipeError, match=said):
        check({**recipe, "output": str(tmp_path / "merged")})
    with pytest.raises(RecipeError, match=said):
        plait.estimate(sources["mood"], data)
    with pytest.raises(RecipeError, match=said):
        keep_within_limit()


def test_command(four: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["cache", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["files"], found["megabytes"], found["folder"]) == (4, 0.0, str(cache_folder()))
    assert invoke(["cache", "--limit", "3000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 1
    assert invoke(["cache", "--clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 0
    assert names() == []


def test_command_without_a_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["cache"]) == 0
    assert "files: 0" in capsys.readouterr().out
