"""Trainings of ensembles that stop, go on, are divided, or find no room on the disk; which epoch they keep."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.cli import interruption
from plait.ensembles import run as ensembling
from plait.errors import OutputError, PlaitError
from plait.evaluation.scores import TaskScores
from plait.recipe import EnsembleRecipe
from plait.training import trainer as loop
from plait.training.state import check_state, training_state
from tests.ensembles import QUICK, close, command, prepare, rows, still, tagged, weights, write


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ensemble"))


def test_a_full_disk(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plait.ensembles.modeling import Ensemble

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Ensemble, "save_pretrained", full)
    with pytest.raises(OutputError, match="No space left"):
        plait.ensemble(place / "base", data=place / "train.jsonl", out=tmp_path / "e", **QUICK)
    assert [p.name for p in tmp_path.iterdir()] in ([], [".e.training"])


@pytest.mark.parametrize(
    ("options", "times"),
    [({"epochs": 1}, 4), ({"epochs": 5}, 10), ({"method": "separate", "members": 3, "epochs": 5}, 2 + 9 / 3)],
)
def test_room_for_result_and_states_is_asked_for_first(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], times: float
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ensembling, "check_space", lambda _, size: asked.append(size))
    told = {"base": str(place / "base"), "data": str(place / "train.jsonl"), "output": "e", **options}
    job = ensembling.plan(EnsembleRecipe.model_validate(told))
    ensembling.announce(job, tmp_path / "e")
    assert asked == [pytest.approx(times * 4 * job.sizes()["saved"], abs=1)]


def test_a_disk_that_fills_up_in_training(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"data": place / "train.jsonl", **QUICK, "epochs": 2}
    whole = plait.ensemble(place / "base", out=tmp_path / "whole", **told)
    saves, own = [0], torch.save

    def full(value: Any, file: Any, *arguments: Any, **more: Any) -> None:
        saves[0] += str(file).endswith("optimizer.pt")
        if saves[0] == 2:
            Path(file).write_bytes(b"PK")
            raise RuntimeError(
                "[enforce fail] PytorchStreamWriter failed writing file data/1: file write failed"
            )
        own(value, file, *arguments, **more)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="cannot be written"):
        plait.ensemble(place / "base", out=tmp_path / "e", **told)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".e.training", "whole"]
    monkeypatch.setattr(torch, "save", own)
    again = plait.ensemble(place / "base", out=tmp_path / "e", resume=True, **told)
    assert again.report["validation"] == whole.report["validation"]


@pytest.mark.parametrize(("method", "stop"), [("camero", 6), ("separate", 10), ("separate", 14)])
def test_a_stopped_run_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, stop: int
) -> None:
    told = {"data": place / "train.jsonl", "method": method, **QUICK, "epochs": 2}
    whole = plait.ensemble(place / "base", out=tmp_path / "whole", **told)
    steps, own = [0], loop.ObjectiveTrainer.compute_loss

    def killed(*arguments: Any, **more: Any) -> Any:
        steps[0] += 1
        if steps[0] == stop:
            raise KeyboardInterrupt
        return own(*arguments, **more)

    monkeypatch.setattr(loop.ObjectiveTrainer, "compute_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        plait.ensemble(place / "base", out=tmp_path / "e", **told)
    assert [p.name for p in tmp_path.iterdir() if "e" in p.name and p.name != "whole"] == [".e.training"]
    with pytest.raises(PlaitError, match="left by another run"):
        plait.ensemble(place / "base", out=tmp_path / "e", resume=True, **{**told, "seed": 3})
    with pytest.raises(PlaitError, match="metric was accuracy, is nll"):
        plait.ensemble(place / "base", out=tmp_path / "e", resume=True, metric="nll", **told)
    states = list((tmp_path / ".e.training").rglob("checkpoint-*"))
    assert len(states) == (stop != 10)  # the second of the separate models had saved nothing yet
    for state in states:
        partial = Path(shutil.copytree(state, state.with_name("checkpoint-999")))
        for record in ("trainer_state.json", "optimizer.pt"):  # killed while this one was saved
            (partial / record).write_bytes(b"{")
    again = plait.ensemble(place / "base", out=tmp_path / "e", resume=True, **told)
    for mine, theirs in zip(again.folders, whole.folders, strict=True):
        assert all(torch.equal(weights(theirs)[name], tensor) for name, tensor in weights(mine).items())
    assert again.report["validation"] == whole.report["validation"]


@pytest.mark.parametrize(("nlls", "last"), [((2.0, 1.0), True), ((1.0, 2.0), False)])
def test_of_epochs_that_are_level_the_surer_is_kept(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nlls: tuple[float, float], last: bool
) -> None:
    told = {"data": place / "train.jsonl", "validation": place / "test.jsonl", **QUICK, "epochs": 2}
    kept = {}
    for name, accuracies, surprise in (("level", (0.5, 0.5), nlls), ("better", (0.5, 0.6), (1.0, 1.0))):
        waiting = [{"accuracy": a, "nll": n} for a, n in zip(accuracies, surprise, strict=True)]
        said = iter([*waiting, waiting[-1]])  # after each epoch, and of the result
        monkeypatch.setattr(
            ensembling, "scored_by", lambda *_, said=said: TaskScores(next(said), "accuracy", 12, {})
        )
        saved = plait.ensemble(place / "base", out=tmp_path / name, **told)
        scored = [{name for name in entry if name != "kept"} for entry in saved.report["epochs"]]
        assert scored == [{"epoch", "accuracy", "nll"}] * 2
        assert [entry.get("kept", False) for entry in saved.report["epochs"]] == (
            [False, True] if last or name == "better" else [True, False]
        )
        kept[name] = weights(saved.folder)
    same = [torch.equal(kept["level"][name], tensor) for name, tensor in kept["better"].items()]
    assert all(same) is last


SAID = {
    "first": {"accuracy": 0.8, "macro_f1": 0.44, "matthews": 0.0, "nll": 0.5, "brier": 0.3, "micro_f1": 0.4},
    "last": {"accuracy": 0.7, "macro_f1": 0.69, "matthews": 0.4, "nll": 0.6, "brier": 0.2, "micro_f1": 0.3},
}
"""What is said of two epochs; the first may know one class alone."""


FIRST = (None, "accuracy", "nll")


@pytest.mark.parametrize("metric", [*FIRST, "matthews", "macro_f1", "brier"])
def test_a_metric_chooses_the_epoch(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str | None
) -> None:
    kept = "first" if metric in FIRST else "last"
    said = iter([*SAID.values(), SAID[kept]])
    monkeypatch.setattr(ensembling, "scored_by", lambda *_: TaskScores(next(said), "accuracy", 12, {}))
    told = {"data": place / "train.jsonl", **QUICK, "epochs": 2, "metric": metric}
    saved = plait.ensemble(place / "base", out=tmp_path / "e", **told)
    assert [name for name, entry in zip(SAID, saved.report["epochs"], strict=True) if entry.get("kept")] == [
        kept
    ]
    assert saved.report["recipe"]["metric"] == (metric or "accuracy")


def test_the_lower_error_of_a_regression_is_kept(place: Path, tmp_path: Path) -> None:
    table = rows(40)
    table["label"] = [len(text) / 10 for text in table["text"]]
    told = {"data": write(tmp_path / "d.jsonl", table), **QUICK, "epochs": 4, "learning_rate": 3e-2}
    saved = plait.ensemble(place / "base", out=tmp_path / "e", metric="mse", **told)
    errors = [entry["mse"] for entry in saved.report["epochs"]]
    [chosen] = [entry["mse"] for entry in saved.report["epochs"] if entry.get("kept")]
    assert chosen == min(errors) < max(errors)
    assert saved.report["validation"]["metrics"]["mse"] == pytest.approx(chosen, rel=1e-4)


@pytest.mark.parametrize("task", ["text", "token"])
def test_accumulation_is_a_larger_batch(tmp_path: Path, task: str) -> None:
    base, count = still(tmp_path / "base"), 43  # the last step has parts of two and one
    table = tagged(count) if task == "token" else rows(count)
    told = {**QUICK, "data": table, "perturbation": "none", "held_back": 0.0, "epochs": 2}
    plait.ensemble(base, out=tmp_path / "one", **told)
    plait.ensemble(base, out=tmp_path / "parts", accumulate=4, **told)
    close(tmp_path / "one", tmp_path / "parts")


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    base = still(tmp_path / "base")
    file = write(tmp_path / "d.jsonl", tagged(40))
    asked = ["ensemble", base, "--data", file, "--members", 2, "--perturbation", "none", "--held-back", 0.2]
    asked += ["--epochs", 1, "--batch-size", 8, "--max-length", 16, "--learning-rate", 1e-3]
    assert command(*asked, "-o", tmp_path / "one") == 0
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29541"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    told = [*start, "-m", "plait", *map(str, asked), "-o", str(tmp_path / "two")]
    subprocess.run(told, check=True, env=environment, capture_output=True, text=True)
    close(tmp_path / "one", tmp_path / "two")


def test_room_for_factors_is_that_of_what_they_become(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ensembling, "check_space", lambda _, size: asked.append(size))
    told = {"base": str(place / "base"), "data": str(place / "train.jsonl"), "output": "e", "epochs": 1}
    job = ensembling.plan(EnsembleRecipe.model_validate({**told, "method": "batchensemble"}))
    ensembling.announce(job, tmp_path / "e")
    assert asked == [4 * (job.sizes()["saved"] + 3 * job.sizes()["factors"])]


def test_a_state_that_is_thrown_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with training_state(tmp_path / "e", keep=True, resume=False) as state:
        (state / "checkpoint-1").mkdir(parents=True)
        (state / "checkpoint-1" / "model.safetensors").touch()
    assert not caplog.text
    with training_state(tmp_path / "e", keep=True, resume=True):
        assert not caplog.text
    with training_state(tmp_path / "e", keep=True, resume=False):
        assert not state.exists()
    assert "the state of a run that was stopped is discarded; --resume would have gone on" in caplog.text


def test_the_record_of_a_stopped_run(tmp_path: Path) -> None:
    check_state(tmp_path, {"seed": 1})
    check_state(tmp_path, {"seed": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
    (tmp_path / "run.json").write_text("", encoding="utf-8")
    with pytest.raises(PlaitError, match=r"run\.json:? is damaged .*start again without resume"):
        check_state(tmp_path, {"seed": 1})


def test_what_an_interrupted_command_says() -> None:
    assert "the same command with --resume goes on" in interruption(["ensemble", "base"])
    assert "resume" not in interruption(["export", "ens"])
