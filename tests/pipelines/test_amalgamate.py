"""Amalgamation end to end on tiny real models: teachers of two families teach a third, from texts alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import plait
from plait.amalgamation import distillation as room
from plait.checkpoints.checkpoint import Checkpoint
from plait.cli import invoke
from plait.errors import DataError, MergeError, OutputError, PlaitError, RecipeError, SourceError
from tests.models import save, texts, tiny
from tests.stopping import stopped_at

NEWS, SPORTS = ("World", "Business"), ("Sports", "Business", "Tech")
UNION = ["World", "Business", "Sports", "Tech"]
QUICK: dict[str, Any] = {"passes": 4, "epochs": 1, "max_length": 32}


def classifier(folder: Path, family: str, names: tuple[str, ...], seed: int) -> str:
    model = tiny(family, "sequence", seed=seed, labels=len(names))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: at for at, name in enumerate(names)}
    return str(save(model, folder))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("amalgamation")
    classifier(folder / "news", "bert", NEWS, 1)
    classifier(folder / "sports", "distilbert", SPORTS, 2)
    classifier(folder / "cousin", "bert", SPORTS, 3)
    save(tiny("bert", "body"), folder / "base")
    (folder / "texts.txt").write_text("\n".join([*texts(60), "", "   "]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def teachers(place: Path) -> dict[str, str]:
    return {"news": str(place / "news"), "sports": str(place / "sports")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def command(*arguments: Any) -> int:
    return invoke([str(argument) for argument in arguments])


def test_command_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "student"
    asked = ["amalgamate", f"news={place}/news", f"sports={place}/sports", "--text", place / "texts.txt"]
    asked += [
        "--student",
        place / "base",
        "-o",
        out,
        "--passes",
        4,
        "--epochs",
        2,
        "--max-length",
        32,
        "--json",
    ]
    assert command(*asked) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["labels"] == UNION
    assert report["data"] == {"source": str(place / "texts.txt"), "texts": 60, "skipped": 2}
    assert report["forward_equivalents"]["teachers"] == 10
    # 57 texts there and back, 3 held back, twice
    assert report["forward_equivalents"]["student"] == pytest.approx(2 * (3 * 57 + 3) / 60, abs=0.01)
    assert len(report["epochs"]) == 2
    shares = [teacher["share"] for teacher in report["who_taught_what"]["teachers"].values()]
    assert sum(shares) == pytest.approx(1)
    assert "muka" in (out / "README.md").read_text()
    assert not list(tmp_path.glob(".student*"))


def test_the_student_needs_nothing_of_ours(place: Path, teachers: dict[str, str], tmp_path: Path) -> None:
    plait.amalgamate(teachers, texts=texts(20), student=place / "base", out=tmp_path / "s", **QUICK)
    code = (
        "import sys; from transformers import AutoModelForSequenceClassification as A, pipeline;"
        f"m = A.from_pretrained({str(tmp_path / 's')!r});"
        f"found = pipeline('text-classification', model={str(tmp_path / 's')!r}, top_k=None)('the film is good');"
        "print(sorted(m.config.id2label.items()), len(found[0]), 'plait' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[-2] == f"{list(enumerate(UNION))} 4 False"


@pytest.mark.parametrize("objective", ["muka", "vkd", "uhc", "dfa", "cfl"])
def test_every_objective_trains(
    place: Path, teachers: dict[str, str], tmp_path: Path, objective: str
) -> None:
    out = tmp_path / "s"
    student = plait.amalgamate(
        teachers, texts=texts(24), student=place / "base", out=out, objective=objective, **QUICK
    )
    assert student.labels == tuple(UNION)
    assert not any("adapters" in name for name in weights(out))
    before = tiny("bert", "body").state_dict()["encoder.layer.0.output.dense.weight"]
    after = weights(out)["bert.encoder.layer.0.output.dense.weight"]
    assert not torch.equal(before, after)
    found = student.predict(["the film is good", "john see mary"])
    assert [set(entry) for entry in found] == [{"label", "score"}] * 2
    passes = student.report["settings"]["passes"]
    assert passes == 4  # named; what an objective without a gate would not need


def test_passes_run_only_where_something_needs_them(
    place: Path, teachers: dict[str, str], tmp_path: Path
) -> None:
    free = {"epochs": 1, "max_length": 32, "student": place / "base", "texts": texts(20)}
    vkd = plait.amalgamate(teachers, out=tmp_path / "vkd", objective="vkd", **free)
    energy = plait.amalgamate(teachers, out=tmp_path / "energy", gate="energy", **free)
    default = plait.amalgamate(teachers, out=tmp_path / "default", **free)
    muka = plait.amalgamate(teachers, out=tmp_path / "muka", gate="muka", **free)
    cost = [s.report["forward_equivalents"]["teachers"] for s in (vkd, energy, default, muka)]
    assert cost == [2, 2, 2, 34]


@pytest.mark.parametrize("gate", ["entropy", "energy", "max_logit", "bald", "mahalanobis", "strata", "base"])
def test_every_gate_routes(place: Path, teachers: dict[str, str], tmp_path: Path, gate: str) -> None:
    student = plait.amalgamate(
        teachers, texts=texts(24), student=place / "base", out=tmp_path / "s", gate=gate, target="soft",
        margin=False, **QUICK,
    )  # fmt: skip
    assert student.report["recipe"]["gate"]["name"] == gate
    assert student.report["recipe"]["margin"] is False


def test_a_second_student_runs_no_teacher(
    place: Path, teachers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"texts": place / "texts.txt", "student": place / "base", "store": tmp_path / "store", **QUICK}
    one = plait.amalgamate(teachers, out=tmp_path / "one", **told)
    monkeypatch.setattr(Checkpoint, "model", lambda *_, **__: pytest.fail("a teacher was loaded"))
    two = plait.amalgamate(teachers, out=tmp_path / "two", target="soft", **told)
    three = plait.amalgamate(teachers, out=tmp_path / "three", objective="vkd", **told)
    costs = [student.report["forward_equivalents"] for student in (one, two, three)]
    assert [cost["teachers"] for cost in costs] == [10, 10, 10]
    assert [cost["teachers_now"] for cost in costs] == [10, 0, 0]


def forbid_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the base be read, and no teacher."""
    real = Checkpoint.model

    def model(self: Checkpoint, **options: Any) -> Any:
        return pytest.fail("a teacher was loaded") if self.name in {"news", "sports"} else real(self, **options)

    monkeypatch.setattr(Checkpoint, "model", model)


def test_posteriors_then_student(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [f"news={place}/news", f"sports={place}/sports", "--text", place / "texts.txt"]
    assert command("posteriors", *two, "-o", tmp_path / "store", "--passes", 4, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["texts"] == 60
    assert about["forward_passes_per_text"]["total"] == 10
    forbid_teachers(monkeypatch)
    # The number of passes is not named: those of the store are used.
    asked = ["--student", place / "base", "-o", tmp_path / "s", "--store", tmp_path / "store", "--epochs", 1]
    assert command("amalgamate", *two, *asked) == 0
    assert "teachers 10.00 (in the store already) + student" in capsys.readouterr().out


def test_recipe(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {
        "combine": "amalgamate",
        "sources": {"news": str(place / "news"), "sports": {"model": str(place / "sports")}},
        "text": str(place / "texts.txt"),
        "student": str(place / "base"),
        "gate": "energy",
        "target": "soft",
        "rename": {"sports.Tech": "Sci/Tech"},
        "objective": {"name": "muka", "temperature": 2},
        "epochs": 1,
        "output": str(tmp_path / "student"),
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    assert command("check", file, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["labels"] == ["World", "Business", "Sports", "Sci/Tech"]
    assert told["forward_equivalents"]["teachers"] == 2
    assert not (tmp_path / "student").exists()
    assert command("run", file) == 0
    assert plait.inspect(tmp_path / "student")["labels"] == told["labels"]
    assert command("run", file) == 2
    assert "exists" in capsys.readouterr().err
    assert command("run", file, "--overwrite") == 0


def test_evaluate_knows_the_labels_by_name(place: Path, teachers: dict[str, str], tmp_path: Path) -> None:
    plait.amalgamate(teachers, texts=texts(20), student=place / "base", out=tmp_path / "s", **QUICK)
    rows = [{"text": t, "label": UNION[i % 4]} for i, t in enumerate(texts(8))]
    found = plait.evaluate(tmp_path / "s", rows)
    assert found.tasks["model"].metrics["accuracy"] in [i / 8 for i in range(9)]


def test_evaluate_shows_the_teachers(
    place: Path, teachers: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    told: dict[str, Any] = {
        "texts": texts(20),
        "student": place / "base",
        "rename": {"sports.Tech": "Sci/Tech"},
    }
    plait.amalgamate(teachers, out=out, **told, **QUICK)
    rows = [
        {"text": t, "label": ("World", "Business", "Sports", "Sci/Tech")[i % 4]}
        for i, t in enumerate(texts(40))
    ]
    found = plait.evaluate(out, rows).tasks["model"]
    assert set(found.sources) == {"news", "sports", "all teachers, logits side by side"}
    # A teacher of two of four labels cannot be right on the others.
    assert found.sources["news"]["accuracy"] <= 0.5
    hand = torch.tensor([
        [float(one["score"]) for one in sorted(rows, key=lambda r: str(r["label"]))]
        for rows in _by_hand(place / "sports", [str(row["text"]) for row in rows])
    ])  # fmt: skip
    names = sorted(SPORTS)
    best = [names[i].replace("Tech", "Sci/Tech") for i in hand.argmax(-1).tolist()]
    right = sum(guess == row["label"] for guess, row in zip(best, rows, strict=True)) / 40
    assert found.sources["sports"]["accuracy"] == pytest.approx(right)
    alone = plait.evaluate(out, rows, sources=False).tasks["model"]
    assert alone.sources == {}
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    assert command("evaluate", out, "--data", file) == 0
    assert "logits side by side: accuracy" in capsys.readouterr().out


def _by_hand(model: Path, given: list[str]) -> Any:
    from transformers import pipeline

    return pipeline("text-classification", model=str(model), top_k=None)(given, truncation=True)


def test_labels_of_the_texts_are_for_study(place: Path, teachers: dict[str, str], tmp_path: Path) -> None:
    rows = [{"text": t, "topic": UNION[i % 4]} for i, t in enumerate(texts(24))]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    student = plait.amalgamate(
        teachers, texts={"path": str(file), "label": "topic"}, student=place / "base", out=tmp_path / "s",
        gate="oracle", **QUICK,
    )  # fmt: skip
    who = student.report["who_taught_what"]
    assert who["routing"] == {"labelled": 24, "accuracy": 1.0}
    assert who["teachers"]["news"]["share"] == pytest.approx(0.5)  # World, and Business, which both know


def test_validation_with_labels_chooses_the_epoch(
    place: Path, teachers: dict[str, str], tmp_path: Path
) -> None:
    held = ([*texts(8, seed=5)], [UNION[i % 4] for i in range(8)])
    student = plait.amalgamate(
        teachers, texts=texts(24), student=place / "base", out=tmp_path / "s", validation=held,
        **{**QUICK, "epochs": 3, "learning_rate": 1e-2},
    )  # fmt: skip
    scores = [epoch["accuracy"] for epoch in student.report["epochs"]]
    assert student.report["validation"]["accuracy"] == pytest.approx(max(scores), abs=1e-6)
    assert plait.evaluate(tmp_path / "s", held).tasks["model"].metrics["accuracy"] == pytest.approx(
        max(scores)
    )


def test_the_best_epoch_is_kept(place: Path, teachers: dict[str, str], tmp_path: Path) -> None:
    student = plait.amalgamate(
        teachers, texts=texts(60), student=place / "base", out=tmp_path / "s",
        **{**QUICK, "epochs": 4, "learning_rate": 3e-2, "held_back": 0.3},
    )  # fmt: skip
    epochs = student.report["epochs"]
    assert len(epochs) == 4


def test_a_stopped_training_goes_on(place: Path, teachers: dict[str, str], tmp_path: Path) -> None:
    told: dict[str, Any] = {"texts": texts(40), "student": place / "base", **QUICK, "epochs": 3}
    whole = plait.amalgamate(teachers, out=tmp_path / "whole", **told)

    with stopped_at(room, "agreement", 2):
        plait.amalgamate(teachers, out=tmp_path / "part", **told)
    assert not (tmp_path / "part").exists()
    with pytest.raises(PlaitError, match="left by another run"):
        plait.amalgamate(teachers, out=tmp_path / "part", resume=True, **{**told, "epochs": 4})
    part = plait.amalgamate(teachers, out=tmp_path / "part", resume=True, **told)
    assert part.report["epochs"] == whole.report["epochs"]
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_seeds_decide(place: Path, teachers: dict[str, str], tmp_path: Path) -> None:
    told: dict[str, Any] = {"texts": texts(20), "student": place / "base", **QUICK}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        plait.amalgamate(teachers, out=tmp_path / name, seed=seed, **told)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["classifier.weight"], c["classifier.weight"])


def test_students_of_every_origin(place: Path, tmp_path: Path) -> None:
    family = {"news": str(place / "news"), "cousin": str(place / "cousin")}
    told: dict[str, Any] = {"texts": texts(20), **QUICK}
    merged = plait.amalgamate(family, student="merged", out=tmp_path / "m", **told)
    assert merged.labels == tuple(UNION)
    assert merged.report["recipe"]["student"] == "merged"
    teacher = plait.amalgamate(family, student="cousin", out=tmp_path / "t", **told)
    assert teacher.checkpoint.config.model_type == "bert"
    with pytest.raises(RecipeError, match="no student given, and the teachers record no base"):
        plait.amalgamate(family, out=tmp_path / "n", **told)
    mixed = {"news": str(place / "news"), "sports": str(place / "sports")}
    with pytest.raises(MergeError, match="different architectures"):
        plait.amalgamate(mixed, student="merged", out=tmp_path / "x", **told)


@pytest.mark.parametrize("family", ["roberta", "deberta-v2", "albert", "modernbert", "electra", "mpnet"])
def test_students_of_every_family(place: Path, teachers: dict[str, str], tmp_path: Path, family: str) -> None:
    base = save(tiny(family, "body"), tmp_path / "base")
    student = plait.amalgamate(
        teachers, texts=texts(20), student=base, out=tmp_path / "s", objective="cfl", **QUICK
    )
    assert student.checkpoint.config.model_type == family
    assert student.report["forward_equivalents"]["student"] == pytest.approx((3 * 19 + 1) / 20, abs=0.01)


def test_pairs_of_sentences(place: Path, teachers: dict[str, str], tmp_path: Path) -> None:
    rows = {"sentence1": texts(20), "sentence2": texts(20, seed=3)}
    plait.amalgamate(teachers, texts=rows, student=place / "base", out=tmp_path / "s", **QUICK)


def test_memory_and_files_give_one_student(place: Path, teachers: dict[str, str], tmp_path: Path) -> None:
    rows = [line for line in (place / "texts.txt").read_text().splitlines() if line.strip()]
    for name, given in (("file", place / "texts.txt"), ("list", rows)):
        plait.amalgamate(teachers, texts=given, student=place / "base", out=tmp_path / name, **QUICK)
    one, two = weights(tmp_path / "file"), weights(tmp_path / "list")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_bad_input(place: Path, teachers: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "odd.json").write_text(json.dumps([{"text": "the film", "y": "Weather"}] * 9))
    save(tiny("bert", "regression"), tmp_path / "number")
    one = save(tiny("bert", "regression"), tmp_path / "one")
    config = json.loads((one / "config.json").read_text()) | {"problem_type": None, "id2label": {"0": "Only"}}
    (one / "config.json").write_text(json.dumps(config))
    save(tiny("bert", "token"), tmp_path / "tags")
    told: dict[str, Any] = {"texts": texts(12), "student": place / "base", "out": tmp_path / "s", **QUICK}
    cases: list[tuple[type[PlaitError], str, dict[str, str], dict[str, Any]]] = [
        (DataError, "no text", teachers, {"texts": tmp_path / "empty.txt"}),
        (DataError, "no such file", teachers, {"texts": tmp_path / "none.txt"}),
        (SourceError, "regression model", {**teachers, "n": str(tmp_path / "number")}, {}),
        (SourceError, "outputs: 1", {**teachers, "o": str(tmp_path / "one")}, {}),
        (SourceError, "token classification", {**teachers, "t": str(tmp_path / "tags")}, {}),
        (RecipeError, "no label 'Text'.*Tech", teachers, {"rename": {"sports.Text": "x"}}),
        (RecipeError, "unknown gate 'engery'.*energy", teachers, {"gate": "engery"}),
        (RecipeError, "unknown objective 'vdk'.*vkd", teachers, {"objective": "vdk"}),
        (RecipeError, "no option 'temprature'", teachers, {"objective": {"name": "muka", "temprature": 2}}),
        (RecipeError, "unknown key 'gaet'.*gate", teachers, {"gaet": "muka"}),
        (RecipeError, "gate muka needs Monte Carlo passes", teachers, {"passes": 0, "gate": "muka"}),
        (RecipeError, "own labels", teachers, {"gate": "oracle", "texts": place / "texts.txt"}),
        (SourceError, "nowhere", {**teachers, "x": str(tmp_path / "nowhere")}, {}),
        (OutputError, "overlap", teachers, {"out": place / "news" / "inside"}),
        (OutputError, "overlap", teachers, {"out": tmp_path / "x", "store": tmp_path / "x"}),
        (OutputError, "overlap", teachers, {"out": tmp_path / "x", "store": tmp_path / "x" / "y"}),
        (SourceError, "nowhere", teachers, {"student": tmp_path / "nowhere"}),
        (
            RecipeError,
            "temperature is 'abc'",
            teachers,
            {"objective": {"name": "muka", "temperature": "abc"}},
        ),
        (RecipeError, "soft targets only", teachers, {"temperature": 0.1}),
        (RecipeError, "stop likely", teachers, {"gate": "bald", "stop": "likely"}),
        (RecipeError, "own labels", teachers, {"gate": "oracle"}),
        (SourceError, "layers", teachers, {"last_layers": 9}),
        (
            DataError,
            "none of its labels",
            teachers,
            {"texts": {"path": str(tmp_path / "odd.json"), "label": "y"}},
        ),
        (RecipeError, "report_to is 'foo'", teachers, {"report_to": "foo"}),
        (RecipeError, "seed is 4294967296", teachers, {"seed": 2**32}),
        (RecipeError, "output is an argument", teachers, {"output": "elsewhere"}),
        (DataError, "labels", teachers, {"validation": texts(3)}),
    ]
    for error, message, given, changes in cases:
        with pytest.raises(error, match=message):
            plait.amalgamate(given, **{**told, **changes})
        assert not (tmp_path / "s").exists(), message
        assert not (tmp_path / "s.posteriors").exists(), message


def test_stores_do_not_mix(place: Path, teachers: dict[str, str], tmp_path: Path) -> None:
    told: dict[str, Any] = {"texts": place / "texts.txt", "out": tmp_path / "store", "passes": 2}
    plait.posteriors(teachers, **told)
    with pytest.raises(DataError, match="passes"):
        plait.posteriors(teachers, **{**told, "passes": 3})
    with pytest.raises(DataError, match="news"):
        plait.posteriors({**teachers, "news": str(place / "cousin")}, **told)
    with pytest.raises(DataError, match="text"):
        plait.posteriors(teachers, **{**told, "texts": texts(9)})
    assert plait.posteriors(teachers, **{**told, "passes": 3}, overwrite=True).settings.passes == 3
    with pytest.raises(RecipeError, match=r"unknown option 'pases'.*passes"):
        plait.posteriors(teachers, **told, pases=3)


def test_a_store_of_the_output_is_made_anew_when_it_is_overwritten(
    place: Path, teachers: dict[str, str], tmp_path: Path
) -> None:
    told: dict[str, Any] = {
        "texts": texts(12),
        "student": place / "base",
        "out": tmp_path / "s",
        "gate": "muka",
        **QUICK,
    }
    plait.amalgamate(teachers, **told)
    again = plait.amalgamate(teachers, overwrite=True, **{**told, "passes": 2})
    assert again.report["settings"]["passes"] == 2


def test_a_stopped_scoring_goes_on_by_the_same_command(
    place: Path, teachers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {
        "texts": texts(12),
        "student": place / "base",
        "gate": "muka",
        "epochs": 1,
        "max_length": 32,
    }
    loaded = Checkpoint.model

    def stopping(self: Checkpoint, **options: Any) -> Any:
        if self.name == "sports":
            raise KeyboardInterrupt
        return loaded(self, **options)

    monkeypatch.setattr(Checkpoint, "model", stopping)
    with pytest.raises(KeyboardInterrupt):
        plait.amalgamate(teachers, out=tmp_path / "s", **told)
    assert not (tmp_path / "s").exists()
    seen: list[str] = []
    monkeypatch.setattr(Checkpoint, "model", lambda self, **o: (seen.append(self.name), loaded(self, **o))[1])
    plait.amalgamate(teachers, out=tmp_path / "s", **told)
    assert "news" not in seen


def test_a_store_serves_other_seeds_gates_and_lengths_of_passes(
    place: Path, teachers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {
        "texts": texts(12),
        "student": place / "base",
        "store": tmp_path / "store",
        "epochs": 1,
    }
    plait.posteriors(
        teachers, texts=told["texts"], out=tmp_path / "store", passes=3, last_layers=1, max_length=32
    )
    monkeypatch.setattr(Checkpoint, "model", lambda *_, **__: pytest.fail("a teacher was loaded"))
    muka = plait.amalgamate(teachers, out=tmp_path / "a", gate="muka", seed=1, **told)
    assert muka.report["settings"]["passes"] == 3
    plait.amalgamate(teachers, out=tmp_path / "b", gate="energy", seed=2, **told)
    plait.amalgamate(teachers, out=tmp_path / "c", gate="mahalanobis", **told)
    plait.amalgamate(teachers, out=tmp_path / "d", objective="vkd", passes=0, **told)
    with pytest.raises(DataError, match=r"passes \(found 3, wanted 4\)"):
        plait.amalgamate(teachers, out=tmp_path / "e", gate="muka", passes=4, **told)


def test_options_of_a_gate(
    place: Path, teachers: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["amalgamate", *(f"{n}={p}" for n, p in teachers.items()), "--text", place / "texts.txt"]
    asked += ["--student", place / "base", "-o", tmp_path / "s", "--max-length", 32, "--epochs", 1]
    assert command(*asked, "--gate", "mahalanobis", "--set-gate", "shrinkage=2") == 2
    assert "shrinkage is 2" in capsys.readouterr().err
    assert command(*asked, "--gate", "mahalanobis", "--set-gate", "shrinkage=0.3") == 0
    report = json.loads((tmp_path / "s" / "plait.json").read_text())
    assert report["recipe"]["gate"] == {"name": "mahalanobis", "shrinkage": 0.3}
    assert command(*asked, "--overwrite", "--set-gate", "shrinkage=0.3") == 2
    assert "--gate" in capsys.readouterr().err


def test_an_objective_without_a_gate_tells_weights(
    place: Path, teachers: dict[str, str], tmp_path: Path
) -> None:
    student = plait.amalgamate(
        teachers, texts=texts(12), student=place / "base", out=tmp_path / "s", objective="vkd", **QUICK
    )
    about = student.report["who_taught_what"]["teachers"]
    assert sum(of["mean_weight"] for of in about.values()) == pytest.approx(1, abs=1e-5)
    assert not any("share" in of for of in about.values())
    assert "mean weight" in (tmp_path / "s" / "README.md").read_text()
    assert "gate" not in student.report["recipe"]


def test_teachers_are_found_from_elsewhere(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    plait.amalgamate(
        {"news": "news", "sports": "sports"}, texts=texts(12), student="base", out=tmp_path / "s", **QUICK
    )
    monkeypatch.chdir(tmp_path)
    rows = [{"text": t, "label": UNION[i % 4]} for i, t in enumerate(texts(8))]
    assert set(plait.evaluate("s", rows).tasks["model"].sources) >= {"news", "sports"}


def test_a_damaged_shard_does_not_cost_the_store(
    place: Path, teachers: dict[str, str], tmp_path: Path
) -> None:
    told: dict[str, Any] = {"texts": texts(12), "student": place / "base", "out": tmp_path / "s", **QUICK}
    plait.amalgamate(teachers, **told)
    shard = next((tmp_path / "s.posteriors" / "teachers" / "news").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match=shard.name):
        plait.amalgamate(teachers, overwrite=True, **told)
    shard.unlink()
    plait.amalgamate(teachers, overwrite=True, **told)


def test_all_texts_teach_where_labels_judge(place: Path, teachers: dict[str, str], tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text("\n".join(json.dumps({"text": t, "topic": UNION[0]}) for t in texts(6)))
    asked = ["amalgamate", *(f"{n}={p}" for n, p in teachers.items()), "--text", place / "texts.txt"]
    asked += ["--student", place / "base", "-o", tmp_path / "s", "--gate", "energy", "--epochs", 2]
    asked += ["--validation", held, "--validation-label-column", "topic"]
    assert command(*asked) == 0
    report = json.loads((tmp_path / "s" / "plait.json").read_text())
    assert report["forward_equivalents"]["student"] == 6


def test_a_resumed_run_tells_its_whole_cost(place: Path, teachers: dict[str, str], tmp_path: Path) -> None:
    told: dict[str, Any] = {"texts": texts(40), "student": place / "base", **QUICK, "epochs": 3}
    with stopped_at(room, "agreement", 3):
        plait.amalgamate(teachers, out=tmp_path / "s", **told)
    whole = plait.amalgamate(teachers, out=tmp_path / "s", resume=True, **told).report["forward_equivalents"]
    assert whole["student"] == pytest.approx(3 * (3 * 38 + 2) / 40, abs=0.01)
