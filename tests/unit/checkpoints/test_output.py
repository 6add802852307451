"""Outputs: one writer at a time, on the disk before they take their name, and what killed runs left of them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from plait.checkpoints import output
from plait.checkpoints.output import exchange, one_writer, whole_file, write_whole
from plait.checkpoints.writer import atomic_folder, writing
from plait.errors import OutputError

HOLD = """
import sys
from plait.checkpoints.output import one_writer
with one_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(place.name for place in folder.iterdir())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    return tmp_path / "out"


def replace_with_new(place: Path) -> None:
    with atomic_folder(place, overwrite=True) as folder:
        (folder / "config.json").write_text("new")


def test_a_second_writer_is_refused_and_told_the_first(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        told = rf"out is being written by process {other.pid}: wait for it, or choose another output"
        with pytest.raises(OutputError, match=told), one_writer(tmp_path / "out"):
            pass
        with pytest.raises(OutputError, match=told):
            replace_with_new(tmp_path / "out")
        with one_writer(tmp_path / "out2"):  # another output is another lock
            pass
        other.kill()
        other.wait()
        assert names(tmp_path) == [".out.lock"]
        with one_writer(tmp_path / "out"):  # what it left stops nobody
            assert (tmp_path / ".out.lock").read_text() == f"{os.getpid()}\n"
    assert names(tmp_path) == []


def test_a_lock_waits_for_one_that_is_soon_gone(tmp_path: Path) -> None:
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with one_writer(tmp_path / "out"):
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    with pytest.raises(OutputError, match=f"being written by process {os.getpid()}"), one_writer(tmp_path / "out"):
        pass
    threading.Timer(0.1, done.set).start()
    with one_writer(tmp_path / "out", patience=30):
        pass
    thread.join()


def test_the_same_thread_comes_in_again(tmp_path: Path) -> None:
    with one_writer(tmp_path / "out"), one_writer(tmp_path / "out"), atomic_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("new")
        assert ".out.lock" in names(tmp_path)
    assert names(tmp_path) == ["out"]


def test_folders_made_for_an_output_that_never_came_are_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), writing(tmp_path / "a" / "b" / "out"):
        raise ValueError("no")
    assert names(tmp_path) == []


def test_a_disk_without_locks_is_written_without(tmp_path: Path, monkeypatch: Any) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    left = tmp_path / ".out.abcdefgh.partial"
    left.mkdir()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("new")
    # Nobody knows whether that one is still being written.
    assert names(tmp_path) == [left.name, "out"]


def test_what_killed_runs_left_is_removed_and_named(model: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "plait")
    mine = [".out.abcdefgh.partial", ".out.0_3defgh.old"]
    others = [".out.b.abcdefgh.partial", ".out.partial", ".out.abcdefghi.partial", ".other.abcdefgh.partial"]
    for name in (*mine, *others):
        (model.parent / name).mkdir()
        (model.parent / name / "x").write_text("half")
    replace_with_new(model)
    assert names(model.parent) == sorted([*others, "out"])
    for name in mine:
        assert f"removed {model.parent / name}, left by a run that was killed" in caplog.text


def test_names_are_swapped_in_one_step_where_the_system_can(model: Path) -> None:
    (model.parent / "new").mkdir()
    if not exchange(model.parent / "new", model):
        pytest.skip("this disk cannot swap two names")
    assert names(model.parent / "new") == ["config.json"]
    assert names(model) == []


@pytest.mark.parametrize("swaps", [True, False])
def test_old_or_new_is_there_at_every_step(model: Path, monkeypatch: Any, swaps: bool) -> None:
    """Every step of a swap is the last one of a killed run once; the next run ends or undoes it."""
    if not swaps:
        monkeypatch.setattr(output, "exchange", lambda *_: False)
    for last in range(100):
        (model / "config.json").write_text("old")
        if killed_after(last, model):
            break
        if swaps:
            assert (model / "config.json").read_text() in {"old", "new"}
        with one_writer(model):
            pass
        assert names(model.parent) == ["out"]
        assert (model / "config.json").read_text() in {"old", "new"}
    assert last > 10
    assert (model / "config.json").read_text() == "new"


def killed_after(steps: int, place: Path) -> bool:
    """Says whether a child that replaces a folder came to the end before it did so many things to files."""
    child = os.fork()
    if child == 0:
        left = steps

        def step(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.chmod"}:
                left -= 1
                if left < 0:
                    os._exit(1)

        sys.addaudithook(step)
        replace_with_new(place)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def test_the_disk_has_it_before_the_old_one_goes(model: Path, monkeypatch: Any) -> None:
    synced: list[str] = []
    real = output.sync_file

    def sync(path: Path) -> None:
        synced.append(f"{path.name if path.suffix != '.partial' else 'partial'}:{(model / 'config.json').read_text()}")
        real(path)

    monkeypatch.setattr(output, "sync_file", sync)
    replace_with_new(model)
    assert synced == ["config.json:old", "partial:old", f"{model.parent.name}:new"]


def test_a_disk_that_fails_at_the_end_keeps_the_old_one(model: Path, monkeypatch: Any) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        replace_with_new(model)
    assert names(model.parent) == ["out"]
    assert (model / "config.json").read_text() == "old"


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", b"old")
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.json") as partial:
        partial.write_bytes((tmp_path / "nowhere").read_bytes())
    assert (tmp_path / "a.json").read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~output.umask()
