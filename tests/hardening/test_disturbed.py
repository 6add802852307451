"""Full disks, signals, a second writer, damaged states, streams that are closed: one line, and nothing half done."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import plait.api
from plait.checkpoints import sealed, writer
from plait.checkpoints.output import one_writer
from plait.cli import invoke
from plait.errors import OutputError, PlaitError
from plait.training import trainer as loop
from tests.hardening.killing import JOBS, prepare
from tests.stopping import stopped_at

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disturbed") / "place"
    folder.mkdir()
    cache = os.environ.get("PLAIT_CACHE")
    prepare(folder)
    os.environ.pop("PLAIT_CACHE") if cache is None else os.environ.update(PLAIT_CACHE=cache)
    JOBS["merge"](folder, folder / "merged")  # what is exported, whichever test comes first
    return folder


def merging(place: Path, out: Path, *more: str) -> list[str]:
    return ["merge", f"a={place / 'source1'}", f"b={place / 'source2'}", "--method", "average", "-o", str(out), *more]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def one_line(said: str) -> str:
    *notes, last = said.splitlines()
    assert last.startswith("error: ")
    assert not any(note.startswith(("error", "Traceback")) for note in notes)
    return last


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_nothing_behind(
    place: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, number: signal.Signals, code: int
) -> None:
    def struck(*_: Any) -> None:
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
    monkeypatch.setattr(writer, "put_in_place", struck)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    try:
        assert invoke(merging(place, tmp_path / "out", "--overwrite")) == code
    finally:
        signal.signal(number, before)
    assert "the output was not written" in one_line(capsys.readouterr().err)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["config.json"]


@pytest.mark.parametrize("job", ["merge", "amalgamate", "ensemble", "finetune", "export", "posteriors", "estimate"])
def test_a_second_writer_is_refused_by_every_job(place: Path, tmp_path: Path, job: str, monkeypatch: Any) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(OutputError, match=f"out is being written by process {other.pid}: wait for it"):
            JOBS[job](place, tmp_path / "out")
        other.kill()


HOLD = """
import sys
from plait.checkpoints.output import one_writer
with one_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_cannot_be_written(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    real = os.open

    def refused(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith(".lock"):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    for job in ("merge", "amalgamate", "ensemble", "finetune", "export", "posteriors", "estimate"):
        with pytest.raises(OutputError, match=r"^cannot write .*out: Read-only file system$"):
            JOBS[job](place, tmp_path / "out")
    assert names(tmp_path) == []


@pytest.mark.parametrize("job", ["refine", "amalgamate", "ensemble", "finetune"])
def test_a_finished_job_says_that_it_is_finished(place: Path, tmp_path: Path, job: str, caplog: Any) -> None:
    caplog.set_level("INFO", "plait")
    JOBS[job](place, tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    (tmp_path / ".out.training").mkdir()  # killed before this was removed
    JOBS[job](place, tmp_path / "out", resume=True)
    assert f"{tmp_path / 'out'} is finished: there is nothing to resume" in caplog.text
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before
    assert not (tmp_path / ".out.training").exists()
    record = json.loads((tmp_path / "out" / "plait.json").read_text())
    (tmp_path / "out" / "plait.json").write_text(json.dumps({**record, "job": "another"}))
    with pytest.raises(OutputError, match="exists and is not empty"):
        JOBS[job](place, tmp_path / "out", resume=True)


def test_finished_members_do_not_stop_a_resumed_ensemble(place: Path, tmp_path: Path) -> None:
    from plait.ensembles import run as ensembling

    with stopped_at(ensembling, "write_ensemble", 1):
        JOBS["distilled"](place, tmp_path / "out")
    assert "out.members" in names(tmp_path)
    JOBS["distilled"](place, tmp_path / "out", resume=True)
    assert "out" in names(tmp_path)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("optimizer.pt", "cut"), ("scheduler.pt", "flipped"), ("trainer_state.json", "cut"), ("rng_state.pth", "gone"),
        ("model.safetensors", "flipped"), ("sealed.json", "flipped"),
    ],
)  # fmt: skip
def test_a_damaged_state_is_never_gone_on_from(
    place: Path, tmp_path: Path, file: str, damage: str, caplog: Any
) -> None:
    state, out = tmp_path / ".out.training", tmp_path / "out"
    whole = finetuned(place)
    shutil.copytree(whole.parent / ".out.training.kept", state)
    [last] = state.glob("checkpoint-*")
    target = last / file
    if damage == "gone":
        target.unlink()
    else:
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        target.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    JOBS["finetune"](place, out, resume=True)
    assert f"{last} cannot be gone on from ({file} is" in caplog.text
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def finetuned(place: Path) -> Path:
    """Returns a finetuned model, beside which the state is that it had after its first epoch."""
    out = place.parent / "finetuned" / "out"
    if not out.exists():
        kept, real = out.parent / ".out.training.kept", loop.forget

        def keep(folder: Path, states: Any) -> None:
            if not kept.exists():
                shutil.copytree(folder, kept)
            real(folder, states)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "forget", keep)
            JOBS["finetune"](place, out)
    return out


def test_a_record_that_is_damaged_is_named(place: Path, tmp_path: Path) -> None:
    state = tmp_path / ".out.training"
    for content in ("[]", '{"base":', "1" * 5000, "[" * 100_000):
        state.mkdir(exist_ok=True)  # an error leaves no state without weights
        (state / "run.json").write_text(content)
        with pytest.raises(PlaitError, match=r"run\.json is damaged .*start again without resume"):
            JOBS["finetune"](place, tmp_path / "out", resume=True)


def test_tensors_that_are_not_what_was_written(tmp_path: Path, caplog: Any) -> None:
    file = tmp_path / "a.safetensors"
    tensors = {"w": torch.ones(4), "same": torch.zeros(2)}
    tensors["again"] = tensors["w"]
    sealed.write_sealed(file, tensors, {"spent": 1.5})
    found = sealed.read_sealed(file)
    assert found is not None
    assert found[1] == {"spent": 1.5}
    assert {name: value.tolist() for name, value in found[0].items()} == {n: t.tolist() for n, t in tensors.items()}
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        content = bytearray(whole)
        content[at] ^= 4
        file.write_bytes(content)
        if (found := sealed.read_sealed(file)) is not None:
            assert found[1] == {"spent": 1.5}
            assert found[0]["w"].tolist() == [1.0] * 4
    assert "a.safetensors is damaged" in caplog.text


PROGRAM = """
import pwd, sys
def gone(*_):
    raise KeyError("getpwuid(): uid not found")
pwd.getpwuid = gone
from plait.cli import main
main()
"""


def test_a_user_without_a_home(place: Path, tmp_path: Path) -> None:
    line = [*merging(place, tmp_path / "out"), "--method", "fisher", "--data", f"a={place / 'train.jsonl'}"]
    line[line.index("average")] = "fisher"
    env = {name: value for name, value in os.environ.items() if name not in {"HOME", "PLAIT_CACHE", "XDG_CACHE_HOME"}}
    env |= {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *line], env=env, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in {0, 2}, done.stderr


STREAMS = [
    (">&-", 0, ""),
    (">/dev/full", 2, "error: cannot write the output: No space left on device"),
    ("| head -1", 0, ""),
    ("2>&- >/dev/null", 0, ""),
]


@pytest.mark.parametrize(("end", "code", "said"), STREAMS)
def test_streams(end: str, code: int, said: str) -> None:
    asked = "methods" if "|" in end else "--version"
    line = f"set -o pipefail; {sys.executable} -m plait {asked} {end}"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (code, said)


def test_the_lock_is_free_again_after_an_error(place: Path, tmp_path: Path) -> None:
    with pytest.raises(PlaitError):
        plait.merge({"a": place / "source1", "b": tmp_path / "nowhere"}, out=tmp_path / "out")
    assert names(tmp_path) == []
    with one_writer(tmp_path / "out"):
        pass
