"""Answers that are kept: without torch the second time, and never older than what they were read off."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plait.api import answer_cache
from plait.api.answer_cache import answer, place_of

COMMAND = """
import sys
from plait.cli import invoke
code = invoke(sys.argv[1:])
heavy = {"torch", "transformers", "datasets", "sklearn", "numpy"} & set(sys.modules)
print(code, *sorted(heavy), file=sys.stderr)
"""


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")


def spoken(*arguments: str | Path) -> tuple[str, str]:
    """Returns what a command prints, and its exit code with the heavy libraries it imported."""
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr.splitlines()[-1]


def counted() -> tuple[list[int], Any]:
    calls: list[int] = []

    def make() -> dict[str, Any]:
        calls.append(1)
        return {"times": len(calls), "pair": (1, 2)}

    return calls, make


def test_methods_and_inspect_need_no_torch_the_second_time(sources: dict[str, str]) -> None:
    for command in (("methods", "--json"), ("inspect", sources["mood"], "--json")):
        first, second = spoken(*command), spoken(*command)
        assert "torch" in first[1]
        assert second == (first[0], "0")
        assert json.loads(second[0])


def test_a_recipe_that_is_wrong_in_itself_is_refused_without_torch(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("sources: {a: x, b: y}\noutput: o\nmethd: average\n")
    assert spoken("check", file) == ("", "2")


@pytest.mark.usefixtures("no_torch")
def test_kept_until_the_code_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, make = counted()
    assert answer("a", make) == answer("a", make) == {"times": 1, "pair": [1, 2]}
    assert answer("b", make)["times"] == 2
    monkeypatch.setattr(answer_cache, "code", lambda: [b"other"])
    assert answer("a", make)["times"] == 3
    assert len(calls) == 3


def test_where_torch_is_there_nothing_is_kept() -> None:
    _, make = counted()
    assert [answer("a", make)["times"] for _ in range(2)] == [1, 2]


@pytest.mark.usefixtures("no_torch")
def test_kept_until_the_files_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model" / "config.json"
    file.parent.mkdir()
    file.write_text("{}")
    _, make = counted()
    assert [answer("a", make, about=file.parent)["times"] for _ in range(2)] == [1, 1]
    file.write_text("[]")
    os.utime(file, ns=(0, 0))
    assert answer("a", make, about=file.parent)["times"] == 2
    assert place_of("a", tmp_path / "missing") is None
    monkeypatch.setattr(answer_cache, "MOST_FILES", 1)
    assert place_of("a", file.parent) is None


@pytest.mark.usefixtures("no_torch")
def test_an_answer_with_a_warning_is_not_kept() -> None:
    calls, make = counted()

    def warned() -> dict[str, Any]:
        logging.getLogger("plait").warning("plug-in x is not loaded")
        return make()  # type: ignore[no-any-return]

    for _ in range(2):
        answer("a", warned)
    assert len(calls) == 2


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("damage", ["", "[1]", "{"])
def test_a_damaged_answer_is_made_again(damage: str) -> None:
    _, make = counted()
    answer("a", make)
    place = place_of("a", None)
    assert place is not None
    place.write_text(damage)
    assert [answer("a", make)["times"] for _ in range(2)] == [2, 2]


@pytest.mark.usefixtures("no_torch")
def test_old_answers_go_and_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, make = counted()
    monkeypatch.setattr(answer_cache, "KEPT", 2)
    for name in "abc":
        answer(name, make)
    assert len(list(answer_cache.answers_folder().iterdir())) == 2
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "file"))
    assert [answer("a", make)["times"] for _ in range(2)] == [4, 5]
