"""Progress: silent when quiet, a line at the end off a terminal, and never an item lost."""

from __future__ import annotations

import logging

import pytest

from plait import progress


def test_track_yields_everything_in_order() -> None:
    assert list(progress.track(iter(range(5)), "count", total=5)) == [0, 1, 2, 3, 4]


def test_slow_work_says_so_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with caplog.at_level(logging.INFO, logger="plait"), progress.task("counting", 3) as tick:
        tick(1)
    assert [r.message for r in caplog.records if r.message.startswith("counting: done in")]


def test_quick_or_quiet_work_says_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, logger="plait"):
        list(progress.track([1, 2], "quick"))
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with caplog.at_level(logging.ERROR, logger="plait"):
        list(progress.track([1, 2], "quiet"))
    assert caplog.records == []


def test_bar_appears_late_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress, "DELAY", 0.0)
    logging.getLogger("plait").setLevel(logging.INFO)
    with progress.task("barring", 2) as tick:
        tick(1)
        tick(1)
    assert "barring" in capfd.readouterr().err
