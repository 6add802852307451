"""Finished work is found again by what decides it, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plait.comparison.candidates import candidates_of
from plait.comparison.cells import Cell, Cells, Keys, without_places
from plait.comparison.material import InMemory
from plait.evaluation.outcome import RowSums
from tests.unit.comparison.conftest import TASKS, situation_in

SUMS = {"a|b": RowSums(np.arange(6.0).reshape(3, 2), "ratio"), "c": RowSums(np.ones((2, 6)), "pearson", True)}


def test_a_cell_comes_back_as_it_was(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "cells")
    assert cells.find("x") is None
    cells.keep("x", Cell({"id": "merge/ties", "seconds": 1.5}, SUMS))
    found = cells.find("x")
    assert found is not None
    assert found.row == {"id": "merge/ties", "seconds": 1.5}
    assert found.sums.keys() == SUMS.keys()
    for task, sums in found.sums.items():
        assert (sums.rows == SUMS[task].rows).all()
        assert (sums.kind, sums.falling) == (SUMS[task].kind, SUMS[task].falling)


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_damaged_cell_is_none(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = Cells(tmp_path)
    cells.keep("x", Cell({"id": "a"}, SUMS))
    (tmp_path / f"x.{suffix}").write_bytes(b"PK half")
    with caplog.at_level("WARNING", logger="plait"):  # a command that ran before may have asked for quiet
        assert cells.find("x") is None
    assert "computed again" in caplog.text


def test_notes_are_kept(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    assert cells.note("k") is None
    cells.write_note("k", {"seconds": 2})
    assert cells.note("k") == {"seconds": 2}
    (tmp_path / "k.note.json").write_text("[1")
    assert cells.note("k") is None


def test_places_do_not_count() -> None:
    told = {"sources": {"a": {"model": "/x", "weight": 2}}, "output": "o", "seed": 1, "text": ["x"]}
    assert without_places(told) == {"sources": {"a": {"weight": 2}}, "seed": 1}


def keys_in(folder: Path, given: InMemory | None = None, **more: object) -> dict[str, tuple[str, str]]:
    situation = situation_in(folder, TASKS, given, **more)
    keys = Keys(situation)
    return {c.id: (keys.made(c), keys.scored(c)) for c in candidates_of(situation) if c.reason is None}


def test_keys_change_with_what_decides_and_nothing_else(different: Path) -> None:
    before = keys_in(different)
    assert keys_in(different, output=str(different / "elsewhere"), prefer="size", budget="5m") == before
    fewer = keys_in(different, limit=20)
    assert {n: made for n, (made, _) in fewer.items()} == {n: made for n, (made, _) in before.items()}
    assert all(fewer[name][1] != scored for name, (_, scored) in before.items())
    rows = {"mood": {"text": ["a b", "c d"], "label": ["bad", "good"]}}
    other = keys_in(different, InMemory(rows, {}))
    assert other["merge/regmean"][0] != before["merge/regmean"][0]
    assert other["merge/ties"][0] == before["merge/ties"][0]
    longer = keys_in(different, max_length=16)
    assert longer["merge/regmean"][0] != before["merge/regmean"][0]
