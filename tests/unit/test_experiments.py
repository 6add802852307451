"""The merging experiment's table says what its cells say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "merging"
TASKS = ("a", "b", "c", "cola", "d", "e")


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name in ("run", "table", "sources"):
        sys.modules.pop(name, None)


def cell(tasks, seed, **relative):
    methods = {
        name: {
            "relative": value,
            "merge_seconds": 1.0,
            "tasks": {task: {"accuracy": value, "matthews": 0.1} for task in tasks},
        }
        for name, value in relative.items()
    }
    own = {task: {"accuracy": 1.0, "matthews": 0.5} for task in tasks}
    return {
        "set": list(tasks), "seed": seed, "settings": {"rows": 3, "examples": 2}, "sources": own, "methods": methods,
    }  # fmt: skip


@pytest.fixture
def cells():
    return [
        cell(("a", "cola"), 0, average=0.90, fisher=0.95),
        cell(("b", "cola"), 0, average=0.80, fisher=0.75),
        cell(("a", "cola"), 1, average=0.90, fisher=1.00),
        cell(TASKS, 0, average=0.5, fisher=0.6),
    ]


def test_rows_hold_mean_spread_and_wins(module, cells):
    table = module("table")
    fisher, average = table.rows(cells)
    assert fisher[:4] == ["fisher", "0.900 ± 0.132", "0.750", "2 of 3"]
    assert average[:4] == ["average", "0.867 ± 0.058", "0.800", "0 of 3"]
    assert fisher[6] == "0.600"
    assert "0.100 ± 0.000" in fisher[5]


def test_markdown_and_figure_are_written(module, cells, tmp_path):
    table = module("table")
    text = table.markdown(cells)
    assert "3 cells of two tasks, 1 of all six" in text
    assert "| fisher | 0.900 ± 0.132 |" in text
    table.draw(cells, tmp_path / "figure.svg")
    once = (tmp_path / "figure.svg").read_bytes()
    table.draw(cells, tmp_path / "figure.svg")
    assert once == (tmp_path / "figure.svg").read_bytes()
    assert b"average" in once or len(once) > 1000


def test_the_grid_is_every_pair_and_all_six(module):
    run = module("run")
    assert len(run.SETS) == 16
    assert len(set(run.SETS)) == 16
    assert sorted(map(len, run.SETS))[-1] == 6
    names = [method.name for method in run.METHODS]
    assert len(set(names)) == len(names)
    assert "fisher mask_nodes paper none" in names
    assert {method.rule for method in run.METHODS} <= set(run.RULES)
