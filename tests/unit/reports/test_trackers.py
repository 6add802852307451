"""Trackers get every number; those that can, the table and the figures too."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from plait.reports.comparison import checked
from plait.reports.page import write_page
from plait.reports.trackers import numbers, track
from tests.unit.reports.comparisons import TASKS, comparison

SMALL = comparison(TASKS[:2], ("separate", "merge/ties"), importance=None, conflicts=None)


class Kept(TrainerCallback):
    """What a tracker of transformers' kind was told."""

    def __init__(self, **more: Any) -> None:
        self.calls: list[str] = []
        self.logs: dict[str, float] = {}
        vars(self).update(more)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.calls.append("begin")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        assert state.is_world_process_zero
        self.logs |= logs

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.calls.append("end")


class Run:
    """Stands where MLflow's module does."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.files: list[str] = []

    def log_text(self, text: str, name: str) -> None:
        self.texts[name] = text

    def log_artifact(self, file: str, place: str) -> None:
        assert Path(file).is_file()
        self.files.append(f"{place}/{Path(file).name}")


def test_every_number_reaches_any_tracker(tmp_path: Path) -> None:
    kept, other = Kept(), Kept(_ml_flow=Run())
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "ranking.png").write_bytes(b"a picture")
    track(SMALL, [kept, other], tmp_path)
    assert kept.calls == ["begin", "end"]
    assert kept.logs == other.logs == numbers(checked(SMALL))
    assert kept.logs["merge/ties/mean_relative"] == 0.848
    assert kept.logs["separate/sst2"] == SMALL["candidates"][0]["scores"]["sst2"]["value"]
    run = vars(other)["_ml_flow"]
    assert "| merge/ties | 84.8 % |" in run.texts["comparison.md"]
    assert run.files == ["figures/ranking.png"]


def test_a_tracker_that_fails_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Kept):
        def on_log(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no connection")

    kept = Kept()
    with caplog.at_level(logging.WARNING, "plait"):
        track(SMALL, [Broken(), kept], tmp_path)
    assert "Broken did not take the comparison: no connection" in caplog.text
    assert kept.logs
    track(SMALL, "none", tmp_path)
    with pytest.raises(ValueError, match="is not supported"):
        track(SMALL, "abacus", tmp_path)


def test_tensorboard_shows_table_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    write_page(tmp_path, SMALL)
    track(SMALL, "tensorboard", tmp_path)
    found = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert found.Scalars("train/merge/ties/mean_relative")[0].value == pytest.approx(0.848)
    assert "figures/ranking" in found.Tags()["images"]
    assert any("comparison" in tag for tag in found.Tags()["tensors"])
