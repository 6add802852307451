"""Several processes, one job: what they make is what one makes; they end together, in one line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import plait
from plait import processes
from plait.cli import invoke
from plait.statistics.importance import load_statistics
from plait.teachers import open_store
from tests.ensembles import prepare
from tests.models import texts

ROOT = Path(__file__).resolve().parents[2]
COUNTS = (2,)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])


def launched(arguments: list[str], count: int, *, cache: Path) -> list[subprocess.CompletedProcess[str]]:
    """Returns what each of several processes printed, started as `torchrun` and `accelerate launch` do."""
    shared = {
        **os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()),
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PLAIT_CACHE": str(cache), "XDG_CACHE_HOME": str(cache),
    }  # fmt: skip
    command = [sys.executable, "-m", "plait", *arguments]
    running = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]  # fmt: skip
    ended = []
    for process in running:
        out, err = process.communicate(timeout=300)
        ended.append(subprocess.CompletedProcess(command, process.returncode, out, err))
    return ended


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("processes"))
    # Three shards, one of them small.
    (folder / "texts.txt").write_text("\n".join(texts(1100)) + "\n", encoding="utf-8")
    return folder


def estimation(place: Path, importance: str, out: Path) -> list[str]:
    return [
        "estimate", str(place / "seed1"), "--data", str(place / "test.jsonl"), "--importance", importance,
        "--labels", "sampled", "--batch-size", "3", "-o", str(out),
    ]  # fmt: skip


EVERY = [("mask_nodes", 2), ("diagonal", 3), ("block_traces", 2), ("gram", 3)]


@pytest.mark.parametrize(("importance", "count"), EVERY)
def test_statistics_are_those_of_one_process(place: Path, tmp_path: Path, importance: str, count: int) -> None:
    ended = launched(estimation(place, importance, tmp_path / "several"), count, cache=tmp_path / "cache")
    assert [one.returncode for one in ended] == [0] * count, ended[0].stderr
    assert [bool(one.stdout) for one in ended] == [True] + [False] * (count - 1)
    assert invoke(estimation(place, importance, tmp_path / "alone")) == 0
    alone, several = (load_statistics(tmp_path / name) for name in ("alone", "several"))
    assert alone.provenance["examples"] == several.provenance["examples"]
    assert alone.tensors.keys() == several.tensors.keys()
    for name, value in alone.tensors.items():
        torch.testing.assert_close(several.tensors[name], value, rtol=1e-6, atol=1e-6 * float(value.abs().max()))


def test_scores_and_predictions_are_those_of_one_process(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(name: str) -> list[str]:
        wanted = ["evaluate", str(place / "seed1"), "--data", str(place / "test.jsonl"), "--batch-size", "2", "--json"]
        return [*wanted, "--predictions", str(tmp_path / name)]

    ended = launched(command("several.csv"), 3, cache=tmp_path)
    assert [one.returncode for one in ended] == [0, 0, 0], ended[0].stderr
    assert invoke(command("alone.csv")) == 0
    assert ended[0].stdout == capsys.readouterr().out
    assert not ended[1].stdout + ended[1].stderr
    assert (tmp_path / "several.csv").read_text() == (tmp_path / "alone.csv").read_text()


@pytest.mark.parametrize("count", COUNTS)
def test_posteriors_are_those_of_one_process(place: Path, tmp_path: Path, count: int) -> None:
    def command(name: str) -> list[str]:
        teachers = [f"a={place / 'seed1'}", f"b={place / 'seed2'}"]
        return [
            "posteriors", *teachers, "--text", str(place / "texts.txt"), "--passes", "2", "-o", str(tmp_path / name)
        ]  # fmt: skip

    ended = launched(command("several"), count, cache=tmp_path)
    assert [one.returncode for one in ended] == [0] * count, ended[-1].stderr
    assert invoke(command("alone")) == 0
    several, alone = (open_store(tmp_path / name) for name in ("several", "alone"))
    assert several.count == alone.count
    for teacher in "ab":
        torch.testing.assert_close(several.posterior(teacher).mean, alone.posterior(teacher).mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(several.posterior(teacher).logits, alone.posterior(teacher).logits)
    # Nothing is left to do for a second run, whatever the number of processes.
    assert invoke(command("several")) == 0


def test_an_error_of_all_is_one_line(place: Path, tmp_path: Path) -> None:
    command = estimation(place, "diagnal", tmp_path / "out")
    ended = launched(command, 2, cache=tmp_path)
    assert [one.returncode for one in ended] == [2, 2]
    assert ended[0].stderr.count("\n") == 1
    assert "did you mean" in ended[0].stderr
    assert not ended[1].stderr


def test_an_error_of_one_ends_all_in_one_line(place: Path, tmp_path: Path) -> None:
    """Only the second process meets it: the file that it reads, by a name relative to its folder, is not there."""
    script = (
        "import os, sys; from plait.cli import invoke\n"
        "if os.environ['RANK'] == '1': sys.argv[4] += '.gone'\n"
        "sys.exit(invoke(sys.argv[1:]))"
    )
    (tmp_path / "alone.py").write_text(script)
    command = estimation(place, "gram", tmp_path / "out")
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    running = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "alone.py"), *command], text=True, stderr=subprocess.PIPE,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "XDG_CACHE_HOME": str(tmp_path)},
        )
        for rank in "01"
    ]  # fmt: skip
    told = [process.communicate(timeout=200)[1] for process in running]
    assert [process.returncode for process in running] == [2, 2]
    assert ".gone" in told[0]
    assert told[0].splitlines()[-1].startswith("error: ")
    assert not told[1]
    assert not (tmp_path / "out").exists()


def test_alone_nothing_is_exchanged() -> None:
    with processes.one_job():
        assert (processes.count(), processes.rank()) == (1, 0)
        assert processes.mine([1, 2, 3]) == [1, 2, 3]
        assert processes.everyones("x") == processes.for_first("x") == ["x"]
        tensor = torch.ones(2)
        assert processes.summed(tensor) is tensor


def test_variables_of_a_launcher_matter_in_shared_jobs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert (processes.count(), processes.rank()) == (1, 0)
    assert not processes.speaks()


def test_parts_are_put_in_order() -> None:
    assert processes.in_order([{0: "a", 2: "c"}, {1: "b"}, {}]) == ["a", "b", "c"]
    assert plait.estimate.__name__ == "estimate"
