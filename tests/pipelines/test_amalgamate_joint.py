"""Several gates together, rounds of students, a base: end to end on tiny real models."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import plait
from plait.amalgamation import distillation as room
from plait.checkpoints.checkpoint import Checkpoint
from plait.cli import invoke
from plait.errors import RecipeError
from tests.models import save, texts, tiny
from tests.stopping import stopped_at

LABELS = {"one": ("a", "b"), "two": ("c", "d")}
WORDS = {"one": "film book food song", "two": "john mary london paris"}
QUICK: dict[str, Any] = {"epochs": 1, "max_length": 16}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns teachers whose embeddings have moved for the words of their own texts alone, and such texts."""
    folder = tmp_path_factory.mktemp("joint")
    base = tiny("bert", "body")
    save(base, folder / "base")
    for seed, (name, labels) in enumerate(LABELS.items()):
        model = tiny("bert", seed=seed, drift=0.05, labels=2)
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: at for at, label in enumerate(labels)}
        table = model.get_input_embeddings().weight
        tokenizer = plait_tokenizer(folder)
        with torch.no_grad():
            table.copy_(base.get_input_embeddings().weight * 0.999)
            for row in tokenizer(WORDS[name], add_special_tokens=False)["input_ids"]:
                table[row] += 0.3
        save(model, folder / name)
    rows = [
        {"text": f"the {word} is {end}", "label": LABELS[name][at % 2]}
        for at, end in enumerate(("good", "bad", "slow", "quick", "bright", "dull"))
        for name, words in WORDS.items()
        for word in words.split()
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def plait_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "base")


def teachers(place: Path) -> dict[str, str]:
    return {name: str(place / name) for name in LABELS}


def told(place: Path, **more: Any) -> dict[str, Any]:
    return {"texts": place / "rows.json", "label": "label", "student": place / "base", **QUICK, **more}


def test_words_that_a_teacher_has_read_route(place: Path, tmp_path: Path) -> None:
    student = plait.amalgamate(
        teachers(place), out=tmp_path / "s", gate={"name": "vocabulary", "neighbours": 0}, **told(place)
    )
    assert student.report["who_taught_what"]["routing"] == {"labelled": 48, "accuracy": 1.0}
    assert student.report["forward_equivalents"]["base"] == 0


def test_auto_says_what_it_weighed(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    named = [f"{name}={folder}" for name, folder in teachers(place).items()]
    asked = ["amalgamate", *named, "--text", place / "rows.json", "--label-column", "label"]
    asked += ["--student", place / "base"]
    assert invoke([str(a) for a in [*asked, "--epochs", 1, "--max-length", 16, "-o", out]]) == 0
    said = capsys.readouterr().out
    report = json.loads((out / "plait.json").read_text())
    panel = report["who_taught_what"]["panel"]
    assert set(panel["gates"]) == {"mahalanobis", "vocabulary", "update"}
    assert all(set(about) == {"weight", "separation", "agrees", "routing"} for about in panel["gates"].values())
    assert all(0 <= about["agrees"] <= 1 for about in panel["gates"].values())
    assert sum(panel["prior"].values()) == pytest.approx(1, abs=1e-3)
    # one pass of the base for neighbours, two for each teacher's update
    assert report["forward_equivalents"]["base"] == 1 + 2 * 2
    assert report["recipe"]["gate"] == {"name": "auto"}
    assert report["recipe"]["base"] == str(place / "base")
    assert "gates weigh mahalanobis" in said
    card = (out / "README.md").read_text()
    assert "| vocabulary |" in card
    assert "Shares of the texts that each teacher is taken to know: one" in card


def test_rounds_run_no_teacher_again(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: Counter[str] = Counter()
    real = Checkpoint.model
    monkeypatch.setattr(Checkpoint, "model", lambda own, **o: (loaded.update([own.name]), real(own, **o))[1])
    student = plait.amalgamate(teachers(place), out=tmp_path / "s", rounds=2, **told(place))
    assert {name: loaded[name] for name in LABELS} == {"one": 1, "two": 1}
    report = student.report
    assert [set(who["panel"]["gates"]) for who in report["rounds_before"]] == [
        {"mahalanobis", "vocabulary", "update"},
        {"mahalanobis", "vocabulary", "update", "student"},
    ]
    assert all(who["routing"]["labelled"] == 48 for who in report["rounds_before"])
    assert report["recipe"]["rounds"] == 2
    # Each round: 48 texts learnt once, there and back, and asked once; then 46 learnt and 2 held back.
    assert report["forward_equivalents"]["student"] == pytest.approx(2 * 4 + (3 * 46 + 2) / 48, abs=0.01)
    assert "2 rounds of students corrected the routing" in (tmp_path / "s" / "README.md").read_text()


def test_a_run_stopped_between_rounds_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plait.amalgamation import rounds as teaching

    asked = told(place, rounds=1)
    whole = plait.amalgamate(teachers(place), out=tmp_path / "whole", **asked)
    with stopped_at(room, "agreement", 1):
        plait.amalgamate(teachers(place), out=tmp_path / "part", **asked)
    monkeypatch.setattr(teaching, "answers", lambda *_: pytest.fail("a finished round began again"))
    part = plait.amalgamate(teachers(place), out=tmp_path / "part", resume=True, **asked)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert part.report["forward_equivalents"]["student"] == whole.report["forward_equivalents"]["student"]


def test_a_single_gate_is_corrected_too(place: Path, tmp_path: Path) -> None:
    student = plait.amalgamate(teachers(place), out=tmp_path / "s", gate="entropy", rounds=1, **told(place))
    assert "panel" not in student.report["rounds_before"][0]
    assert set(student.report["who_taught_what"]["panel"]["gates"]) == {"entropy", "student"}


def test_one_gate_counts_from_the_midpoint_too(place: Path, tmp_path: Path) -> None:
    student = plait.amalgamate(
        teachers(place), out=tmp_path / "s", gate={"name": "vocabulary", "neighbours": 0}, calibrate="auto",
        **told(place),
    )  # fmt: skip
    panel = student.report["who_taught_what"]["panel"]
    assert panel["prior"] == pytest.approx({"one": 0.5, "two": 0.5}, abs=0.05)
    assert panel["gates"]["vocabulary"]["separation"] > 2
    assert student.report["who_taught_what"]["routing"]["accuracy"] == 1.0


def test_labelled_texts_weigh_the_gates(place: Path, tmp_path: Path) -> None:
    rows = json.loads((place / "rows.json").read_text())[::4]
    held = ([row["text"] for row in rows], [row["label"] for row in rows])
    student = plait.amalgamate(
        teachers(place), out=tmp_path / "s", gate="fitted", validation=held, agreement=True, **told(place)
    )
    panel = student.report["who_taught_what"]["panel"]
    assert panel["labelled"] == 12
    assert set(panel["gates"]) == {
        "mahalanobis", "vocabulary", "update", "base", "entropy", "energy", "max_logit",
    }  # fmt: skip
    assert student.report["who_taught_what"]["texts"] == 48
    again = plait.amalgamate(
        teachers(place), out=tmp_path / "again", gate="fitted", validation=(held[0][:9], held[1][:9]),
        store=tmp_path / "s.posteriors", **told(place),
    )  # fmt: skip
    assert again.report["who_taught_what"]["panel"]["labelled"] == 9
    with pytest.raises(RecipeError, match="gate fitted: 3 labelled texts; give 8 or more, or --gate auto"):
        plait.amalgamate(
            teachers(place), out=tmp_path / "t", gate="fitted", validation=(held[0][:3], held[1][:3]), **told(place)
        )


def test_teachers_that_share_a_label_agree_by_default(place: Path, tmp_path: Path) -> None:
    rename = {"two.c": "a"}
    student = plait.amalgamate(teachers(place), out=tmp_path / "s", rename=rename, **told(place))
    assert student.report["recipe"]["target"] == "consensus"
    hard = plait.amalgamate(teachers(place), out=tmp_path / "h", rename=rename, target="hard", **told(place))
    assert hard.report["recipe"]["target"] == "hard"
    apart = plait.amalgamate(teachers(place), out=tmp_path / "a", **told(place))
    assert apart.report["recipe"]["target"] == "hard"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "autp"}, r"unknown gate 'autp'.*did you mean 'auto'"),
        ({"gate": {"name": "auto", "neighbours": 3}}, r"gate auto has no options.*leave out neighbours"),
        ({"gate": "fitted"}, r"gate fitted learns from labelled texts: give --validation FILE, or --gate auto"),
        ({"gate": "energy", "agreement": True}, r"there is one, energy: give --gate auto, or leave it out"),
        ({"gate": "auto", "calibrate": "standardize"}, r"gate auto finds by itself what a score is counted from"),
        ({"gate": "base", "student": "one", "base": None}, r"gate base needs the encoder from before fine-tuning"),
        ({"gate": "update", "student": "one"}, r"gate update needs the encoder .* give --base MODEL"),
        ({"rounds": 4}, r"rounds"),
    ],
)
def test_what_cannot_be_is_said(place: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plait.amalgamate(teachers(place), out=tmp_path / "s", **{**told(place), **options})
    assert not (tmp_path / "s").exists()


def test_without_a_base_auto_does_with_what_there_is(place: Path, tmp_path: Path) -> None:
    student = plait.amalgamate(teachers(place), out=tmp_path / "s", **{**told(place), "student": "one"})
    assert set(student.report["who_taught_what"]["panel"]["gates"]) == {"mahalanobis"}
    given = plait.amalgamate(
        teachers(place), out=tmp_path / "t", base=place / "base", **{**told(place), "student": "one"}
    )
    assert set(given.report["who_taught_what"]["panel"]["gates"]) == {"mahalanobis", "vocabulary", "update"}


def test_noise_aware_options_of_the_objective(place: Path, tmp_path: Path) -> None:
    objective = {"name": "muka", "selected": 0.8, "bootstrap": 0.2}
    student = plait.amalgamate(teachers(place), out=tmp_path / "s", objective=objective, **told(place))
    assert student.report["recipe"]["objective"] == objective
    assert set(student.predict(texts(1))[0]) == {"label", "score"}


def test_teachers_of_two_families_each_with_a_base_of_its_own(place: Path, tmp_path: Path) -> None:
    """Tokenizers, widths of vocabularies and layers differ; each teacher is held against what it records."""
    save(tiny("roberta", "body"), tmp_path / "base")
    model = tiny("roberta", seed=3, drift=0.05, labels=2)
    model.config.id2label, model.config.label2id = {0: "c", 1: "d"}, {"c": 0, "d": 1}
    save(model, tmp_path / "two")
    (tmp_path / "two" / "plait.json").write_text(json.dumps({"base": str(tmp_path / "base")}))
    mixed = {"one": str(place / "one"), "two": str(tmp_path / "two")}
    student = plait.amalgamate(mixed, out=tmp_path / "s", **told(place))
    report = student.report
    assert set(report["who_taught_what"]["panel"]["gates"]) == {"mahalanobis", "vocabulary", "update"}
    assert report["recipe"]["base"] == str(place / "base")
    (tmp_path / "two" / "plait.json").unlink()
    alone = plait.amalgamate(mixed, out=tmp_path / "t", **told(place))
    assert set(alone.report["who_taught_what"]["panel"]["gates"]) == {"mahalanobis", "base"}
