"""Progress: silent when quiet, a line at the end off a terminal, and never an item lost."""

from __future__ import annotations

import logging
import sys

import pytest

from plait import progress
from plait.progress import Notes


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


@pytest.mark.parametrize("delay", [0.0, 60.0])
def test_a_bar_appears_late_on_a_terminal_and_goes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], delay: float
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "DELAY", delay)
    progress.send_to(Notes(), logging.INFO)
    with progress.task("barring", 2) as tick:
        tick(1)
        logging.getLogger("plait").info("a note")
        tick(1)
    shown = capfd.readouterr().err
    assert "a note\n" in shown
    if delay:
        assert "done in" not in shown
        return
    assert "barring:   0%" in shown
    assert "0/2 [" in shown
    assert "barring: done in" in shown.splitlines()[-1]  # the bar is wiped away before


def test_long_work_off_a_terminal_says_so_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with caplog.at_level(logging.INFO, logger="plait"), progress.task("training", 20) as tick:
        for _ in range(15):
            tick(1)
    assert [r.message for r in caplog.records] == [
        "training: 3 of 20, 170 s left".replace("170 s", "3 min"),
        "training: 9 of 20, 2 min left",
        "training: done in 170.0 s",
    ]


def unconfigured(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """Makes this a program that has configured no logging; pytest hangs handlers of its own into each test."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    ours = logging.getLogger("plait")
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(ours, "propagate", True)
    ours.setLevel(logging.NOTSET)
    return ours


@progress.noted
def job() -> None:
    logging.getLogger("plait").info("a note")


def test_notes_appear_where_nothing_is_configured(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    unconfigured(monkeypatch)
    job()
    job()
    assert capfd.readouterr().err == "a note\na note\n"


def test_notes_leave_a_configured_program_alone(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = unconfigured(monkeypatch)
    job()
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    job()
    assert capfd.readouterr().err == "a note\n"
    assert bare.handlers == []
    assert bare.level == logging.NOTSET


def test_own_level_is_kept(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    unconfigured(monkeypatch).setLevel(logging.WARNING)
    job()
    assert capfd.readouterr().err == ""


def test_verbosity(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import plait

    unconfigured(monkeypatch)
    plait.set_verbosity("quiet")
    job()
    assert capfd.readouterr().err == ""
    plait.set_verbosity("notes")
    job()
    assert capfd.readouterr().err == "a note\n"
    with pytest.raises(plait.PlaitError, match="did you mean 'quiet'"):
        plait.set_verbosity("quite")


def test_notes_spell_out_what_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("plait", logging.INFO, "", 0, "label %s", ("\x1b[2J",), None)
    Notes().emit(record)
    assert "\x1b" not in capsys.readouterr().err
