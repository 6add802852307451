"""Options of an amalgamation: how they are written, where they count, and how they are recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.amalgamation.choices import Choices
from plait.amalgamation.label_space import union
from plait.amalgamation.targets import soft_targets
from plait.cli import invoke
from tests.models import texts
from tests.two_teachers import NAMES, QUICK, Paths


@pytest.mark.parametrize("value", ["temperature=[", "temperature=@x"])
def test_a_value_that_is_no_yaml(
    teachers: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    (tmp_path / "t.txt").write_text("\n".join(texts(5)))
    given = [f"{name}={model}" for name, model in teachers.items()]
    words = [
        "amalgamate",
        *given,
        "--text",
        str(tmp_path / "t.txt"),
        "--set",
        value,
        "-o",
        str(tmp_path / "s"),
    ]
    assert invoke(words) == 2
    assert "is no value as YAML writes them" in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["muka", "vkd", "uhc", "dfa", "cfl"])
def test_one_line_of_options_serves_every_objective(
    place: Path, teachers: Paths, tmp_path: Path, objective: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: dict[str, Any] = {"gate": "energy", "target": "soft", "margin": False, "passes": 2}
    student = plait.amalgamate(
        teachers,
        texts=texts(20),
        student=place / "base",
        out=tmp_path / "s",
        objective=objective,
        **told,
        **QUICK,
    )
    plain = plait.amalgamate(
        teachers, texts=texts(20), student=place / "base", out=tmp_path / "t", objective=objective, **QUICK
    )
    idle = "gate, target, margin are without effect" in caplog.text
    assert idle is (objective != "muka")
    if idle:
        assert student.report["epochs"] == [
            pytest.approx(epoch, abs=1e-4) for epoch in plain.report["epochs"]
        ]


def test_the_temperature_softens_teacher_and_student(teachers: Paths, tmp_path: Path) -> None:
    store = plait.posteriors(teachers, texts=texts(30), out=tmp_path / "p", passes=0)
    posteriors = [store.posterior(name) for name in NAMES]
    found = soft_targets(posteriors, union(NAMES), Choices(gate="energy", options={"temperature": 2.0}))
    chosen = [posteriors[at].logits[row].double() / 2 for row, at in enumerate(found.routing.choice.tolist())]
    expected = torch.stack([z.softmax(-1) for z in chosen]).max(-1).values
    assert torch.allclose(found.target.max(-1).values.double(), expected, atol=1e-6)


def test_what_was_left_to_plait_is_written_down(place: Path, teachers: Paths, tmp_path: Path) -> None:
    store, told = tmp_path / "p", {"texts": texts(20), "student": place / "base"}
    plait.posteriors(teachers, texts=texts(20), out=store, passes=0, max_length=24)
    student = plait.amalgamate(teachers, out=tmp_path / "s", store=store, target="soft", epochs=1, **told)
    recipe = student.report["recipe"]
    assert recipe["max_length"] == 24
    assert recipe["temperature"] > 0
