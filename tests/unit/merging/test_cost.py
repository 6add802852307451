"""What a dry run says of bytes, shards, memory and time, against what the merge then does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import plait
from plait.api import check
from plait.checkpoints.checkpoint import Checkpoint
from plait.cli import invoke
from plait.merging import cost, rates
from plait.merging.chunks import Files, InMemory, StackBuffer, TensorPlace
from plait.merging.engine import RuleInputs, in_pieces, write_merged
from plait.merging.job import Job, prepare
from plait.merging.rates import PeakMemory, disk_rate, rule_speed
from plait.merging.rule import RULES
from plait.merging.thresholds import Thresholds
from tests.decoders import decoder
from tests.models import save, tiny

HUGE = (128_256, 8192)


@dataclass(frozen=True)
class Announced:
    """A source of which only the header is there."""

    name: str
    shape: tuple[int, ...]

    def __contains__(self, parameter: object) -> bool:
        return True

    def header(self, parameter: str) -> TensorPlace:
        return TensorPlace(torch.bfloat16, self.shape)

    def read(self, parameter: str) -> Tensor:
        raise AssertionError("a weight was read")

    def note(self, parameter: str, digest: str) -> None: ...


def announced(rule: str, shape: tuple[int, ...] = HUGE, count: int = 2) -> Job:
    entry = RULES[rule]
    base = Announced("base", shape) if "base" in entry.inputs else None
    sources = [Announced(name, shape) for name in "abcd"[:count]]
    return prepare(sources, ["layers.0.weight"], entry, base=base)


def tensor_bytes(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            total += sum(opened.get_tensor(n).nbytes for n in opened.keys())  # noqa: SIM118
    return total


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("llamas")
    return {n: decoder(place / n, AutoModelForCausalLM, "llama", seed=i) for i, n in enumerate(("base", "a", "b"))}


@pytest.mark.parametrize("method", ["average", "ties", "tsv", "slerp"])
def test_bytes_and_shards_are_those_of_the_merge(llamas: dict[str, str], tmp_path: Path, method: str) -> None:
    based = "base" in RULES[method].inputs
    recipe: dict[str, Any] = {
        "combine": "merge", "method": method, "sources": {n: llamas[n] for n in "ab"}, "max_shard_size": "10KB",
        "output": str(tmp_path / "out"), **({"base": llamas["base"]} if based else {}),
    }  # fmt: skip
    told = check(recipe)
    plait.run(recipe)
    top = [file for file in (tmp_path / "out").glob("*.safetensors") if not file.is_symlink()]
    assert told["shards"] == len(top) > 1
    assert told["bytes_written"] == tensor_bytes(tmp_path / "out") - tensor_bytes(tmp_path / "out" / "tasks")
    one = tensor_bytes(Path(llamas["a"]))
    if method == "tsv":  # the base is read where the rule is used, not where it is averaged
        assert 2 * one < told["bytes_read"] < 3 * one
    else:
        assert told["bytes_read"] == (3 if based else 2) * one


def test_heads_count_once_a_task_and_bodies_once(tmp_path: Path) -> None:
    sources = {n: str(save(tiny("bert", seed=i), tmp_path / n)) for i, n in enumerate("ab")}
    recipe = {"combine": "merge", "method": "average", "sources": sources, "output": str(tmp_path / "out")}
    told = check(recipe)
    plait.run(recipe)
    links = sum(tensor_bytes(p.parent) for p in (tmp_path / "out").rglob("config.json") if p.parent.name in sources)
    assert told["bytes_written"] <= tensor_bytes(tmp_path / "out") <= told["bytes_written"] + links
    poolers = 2 * 4 * (16 * 16 + 16)  # merged with the body, and kept by their tasks
    assert told["bytes_read"] == sum(tensor_bytes(Path(folder)) for folder in sources.values()) + poolers


def test_no_weight_is_read(llamas: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Checkpoint.read

    def refuse(checkpoint: Checkpoint, stored: str) -> Tensor:
        assert "embed" in stored, "a weight was read"  # some of whose rows tell whether sources share a base
        return original(checkpoint, stored)

    monkeypatch.setattr(Checkpoint, "read", refuse)
    arguments = ["merge", llamas["a"], llamas["b"], "--base", llamas["base"], "--method", "ties"]
    assert invoke([*arguments, "-o", str(tmp_path / "out"), "--dry-run", "--json"]) == 0
    assert not (tmp_path / "out").exists()


def test_people_read_a_sentence(llamas: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["merge", llamas["a"], llamas["b"], "--method", "karcher", "-o", str(tmp_path / "out"), "--dry-run"]
    assert invoke(arguments) == 0
    told = capsys.readouterr().out
    assert "estimate: reads 0.04 MB, writes 0.02 MB, takes about" in told
    assert "whole_tensors: karcher cannot be cut into pieces:" in told
    assert "tried on random numbers" in told


@pytest.mark.parametrize("rule", ["average", "ties", "della", "breadcrumbs", "dare", "task_arithmetic"])
def test_a_huge_tensor_takes_no_more_memory_than_a_small_one(rule: str) -> None:
    job = announced(rule)
    speed = rule_speed(job, job.slots[0])
    assert speed.memory(HUGE[0] * HUGE[1]) == speed.memory(1000) < 60e6
    assert speed.seconds(2 * 10**9) == pytest.approx(2 * speed.seconds(10**9))


@pytest.mark.parametrize("rule", ["slerp", "karcher", "tsv", "iso"])
def test_what_a_rule_must_hold_whole_is_counted(rule: str) -> None:
    job = announced(rule)
    assert not in_pieces(job, job.slots[0])
    entries = HUGE[0] * HUGE[1]
    assert rule_speed(job, job.slots[0]).memory(entries) > 2 * 4 * entries


def test_a_model_wide_threshold_reads_twice_what_memory_does_not_keep(
    llamas: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {
        "combine": "merge", "sources": {n: llamas[n] for n in "ab"}, "base": llamas["base"],
        "method": {"name": "ties", "scope": "model"}, "output": str(tmp_path / "out"),
    }  # fmt: skip
    once = check(recipe)["bytes_read"]
    monkeypatch.setattr(cost, "_memory_of_machine", lambda: 1000.0)
    assert check(recipe)["bytes_read"] == 2 * once


def test_time_is_of_the_disk_or_of_the_arithmetic() -> None:
    job = announced("average", (1000, 1000))
    disk = rates.Disk(100.0, 50.0, "made up")
    slow = cost.Part(job, job.slots[0], "average", True, rates.Speed(1e-3, 1.0, 0, 0.0))
    quick = cost.Part(job, job.slots[0], "average", True, rates.Speed(1e-9, 1.0, 0, 0.0))
    assert cost.seconds_of([quick], (1000, 500), disk)[0] == pytest.approx(20.0)
    assert cost.seconds_of([slow] * 4, (1000, 500), disk)[0] == pytest.approx(
        20.0 / cost.workers() + 4000.0 / cost.workers()
    )


def test_a_folder_that_cannot_be_tried_is_assumed() -> None:
    found = disk_rate(Path("/proc/nowhere/out"), 10**6)
    assert found.read == found.write == rates.ASSUMED
    assert "assumed" in found.how


def test_a_tried_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    found = disk_rate(tmp_path / "deep" / "out", 10**6)
    assert min(found.read, found.write) > 1e6
    assert list(tmp_path.iterdir()) == []


def test_memory_is_what_lives_at_one_time() -> None:
    with PeakMemory() as held:
        first = torch.zeros(1000)
        second = first + 1
        del first
        third = second * 2
        third.add_(1)
        second.view(10, 100)
    assert held.peak == 8000


def test_pieces_bound_what_a_large_tensor_takes() -> None:
    tensors = {n: torch.randn(2**22).bfloat16() for n in ("a", "b", "base")}
    sources = [InMemory(n, {"w": tensors[n]}) for n in "ab"]
    job = prepare(sources, ["w"], RULES["task_arithmetic"], base=InMemory("base", {"w": tensors["base"]}))
    with Files() as files, torch.inference_mode(), PeakMemory() as held:
        inputs = RuleInputs(job, job.slots[0], files, StackBuffer(), Thresholds(), digest=False)
        for piece in inputs.pieces():
            inputs.merge(piece)
    assert held.peak < 2**22 * 2  # less than one source in bfloat16


def test_the_base_is_hashed_as_it_passes(tmp_path: Path) -> None:
    noted: dict[str, str] = {}

    @dataclass(frozen=True)
    class Stored:
        name: str
        file: Path

        def __contains__(self, parameter: object) -> bool:
            return parameter == "w"

        def header(self, parameter: str) -> TensorPlace:
            start = 8 + int.from_bytes(self.file.read_bytes()[:8], "little")
            return TensorPlace(torch.float32, (64, 64), self.file, start)

        def read(self, parameter: str) -> Tensor:
            return load_file(self.file)[parameter]

        def note(self, parameter: str, digest: str) -> None:
            noted[self.name] = digest

    for name in ("a", "b", "base"):
        save_file({"w": torch.randn(64, 64)}, tmp_path / name)
    sources = [Stored(name, tmp_path / name) for name in "ab"]
    base = Stored("base", tmp_path / "base")
    (tmp_path / "out").mkdir()
    write_merged(tmp_path / "out", sources, ["w"], RULES["ties"], base=base)
    assert set(noted) == {"a", "b", "base"}
