"""Where there is an accelerator, models run on it, and say what they say on the CPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.cli import invoke
from plait.encoders import modes as placement
from plait.teachers import open_store
from tests.accelerated import MARK
from tests.ensembles import prepare
from tests.models import texts

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("seed1", "ens", "merged")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("accelerator"))
    plait.ensemble(sources=[folder / "seed1", folder / "seed2"], out=folder / "ens", epochs=0)
    sources = {"a": str(folder / "seed1"), "b": str(folder / "seed2")}
    plait.merge(sources, method="average", out=folder / "merged")
    (folder / "texts.txt").write_text("\n".join(texts(20)) + "\n", encoding="utf-8")
    return folder


def evaluation(place: Path, model: str) -> list[str]:
    data = f"{'a=' if model == 'merged' else ''}{place / 'test.jsonl'}"
    return ["evaluate", str(place / model), "--data", data, "--json"]


def hearing(place: Path, out: str) -> list[str]:
    teachers = [f"a={place / 'seed1'}", f"b={place / 'seed2'}"]
    return [
        "posteriors",
        *teachers,
        "--text",
        str(place / "texts.txt"),
        "--passes",
        "3",
        "-o",
        str(place / out),
    ]


@pytest.fixture(scope="module")
def printed(place: Path) -> list[tuple[str, str]]:
    """What commands printed in a process of their own, for a device is registered once and for good."""
    commands = [
        *(evaluation(place, model) for model in MODELS),
        *(hearing(place, o) for o in ("there", "again")),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.accelerated", json.dumps(commands)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    *parts, rest = re.split(rf"^{MARK}(.*)\n", done.stdout, flags=re.MULTILINE)
    assert not rest
    return list(zip(parts[::2], parts[1::2], strict=True))


def numbers(found: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(found, dict):
        for key, value in found.items():
            yield from numbers(value, f"{name}/{key}")
    elif isinstance(found, float):
        yield name, found


def test_models_ran_nowhere_else(printed: list[tuple[str, str]]) -> None:
    assert [devices for _, devices in printed] == ["pretend"] * 5


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_is_the_same(
    place: Path, printed: list[tuple[str, str]], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    there = dict(numbers(json.loads(printed[MODELS.index(model)][0])))
    assert invoke(evaluation(place, model)) == 0
    here = dict(numbers(json.loads(capsys.readouterr().out)))
    assert len(here) > 3
    assert there == pytest.approx(here, abs=1e-5)


@pytest.mark.usefixtures("printed")
def test_teachers_are_heard_the_same(place: Path) -> None:
    assert invoke(hearing(place, "here")) == 0
    here, there, again = (open_store(place / name) for name in ("here", "there", "again"))
    for name in ("a", "b"):
        first, second = here.posterior(name), there.posterior(name)
        torch.testing.assert_close(first.logits, second.logits)
        assert not torch.allclose(second.mean, second.logits.softmax(-1))  # with dropout
        assert torch.equal(second.mean, again.posterior(name).mean)


def test_what_torch_was_built_for_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def current(*, check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)
    assert placement.accelerator() == torch.device("cpu")
