"""Ensembles end to end on tiny real models: every method, perturbation, task and family; bad input; stopped runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

import plait
from plait.ensembles.fit import FITS
from plait.ensembles.method import Build
from plait.ensembles.saved import SavedEnsemble
from plait.errors import DataError, MergeError, OutputError, PlaitError, RecipeError, SourceError
from tests.ensembles import NAMES, QUICK, close, command, inputs, prepare, rows, still, tagged, weights, write
from tests.models import FAMILIES, save, texts, tiny, tiny_tokenizer

METHODS = (
    "camero",
    "shared",
    "single",
    "separate",
    "one",
    "codistillation",
    "batchensemble",
    "lora",
    "singular",
    "mc_dropout",
)

ONE_MODEL = ("distilled", "hydra", "soup", "greedy_soup", "swa", "deni")
"""Those of test_ensemble_one_model.py."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> SavedEnsemble:
    out = tmp_path_factory.mktemp("made") / "ens"
    return plait.ensemble(place / "base", data=place / "train.jsonl", out=out, **{**QUICK, "members": 3})


def test_command_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, train = tmp_path / "ens", place / "train.jsonl"
    asked = ["ensemble", place / "base", "--data", train, "--validation", place / "test.jsonl", "-o", out]
    asked += [
        "--members",
        4,
        "--shared-layers",
        "all",
        "--perturbation",
        "dropout",
        "--consistency",
        "pairwise",
    ]
    asked += ["--alpha", 0.5, "--epochs", 2, "--max-length", 16, "--batch-size", 8]
    assert command(*asked, "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert told["forward_equivalents"] == {"training_step": 12.0, "training": 24.0, "prediction": 1.0}
    assert told["replicate_at"] == 0
    assert command(*asked, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == told["parameters"]
    assert sum(t.numel() for t in weights(out).values()) == told["parameters"]["saved"]
    assert told["parameters"]["separate"] == 4 * (told["parameters"]["saved"] - 3 * (16 * 2 + 2))
    assert report["recipe"]["consistency"] == {"name": "pairwise"}
    assert [entry["epoch"] for entry in report["epochs"]] == [1, 2]
    assert {"loss/task", "loss/consistency"} <= set(report["losses"][0])
    assert report["data"] == {"source": str(train), "examples": 40, "validation": 12, "held_back": False}
    assert "4 members" in (out / "README.md").read_text()
    assert not list(tmp_path.glob(".ens*"))
    assert command("evaluate", out, "--data", place / "test.jsonl", "--json") == 0
    found = json.loads(capsys.readouterr().out)["tasks"]["model"]
    assert found["metrics"] == pytest.approx(report["validation"]["metrics"], abs=1e-5)
    assert list(found["sources"]) == [f"member {m}" for m in range(4)]
    curve = found["selective_prediction"]
    assert curve["coverage"] == pytest.approx([k / 12 for k in range(1, 13)])
    assert curve["risk"][-1] == pytest.approx(1 - found["metrics"]["accuracy"])
    assert sum(curve["risk"]) / 12 == pytest.approx(found["metrics"]["aurc"])
    assert command("inspect", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["shared_layers"] == 2


def test_scores_for_people(made: SavedEnsemble, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("evaluate", made.folder, "--data", place / "test.jsonl", "--quiet") == 0
    said = capsys.readouterr().out
    for word in (
        "12 examples",
        "together",
        "member 2",
        "nll",
        "disagreement",
        "oracle_accuracy",
        "risk_at_80",
    ):
        assert word in said


def test_inspect_for_people(made: SavedEnsemble, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("inspect", made.folder) == 0
    shown = capsys.readouterr().out
    [epoch] = made.report["epochs"]
    assert "\nepochs:\n" in shown
    assert f"accuracy {epoch['accuracy']:g}, " in shown
    assert "{" not in shown


def test_an_ensemble_is_a_transformers_model(made: SavedEnsemble) -> None:
    model = plait.load(made.folder)
    same = AutoModelForSequenceClassification.from_pretrained(made.folder)
    batch = inputs(made.folder)
    with torch.no_grad():
        outputs = model(**batch, output_members=True)
        assert torch.equal(same(**batch).logits, outputs.logits)
    assert outputs.member_logits.shape == (3, 5, 2)
    torch.testing.assert_close(outputs.logits, outputs.member_logits.mean(0))
    assert type(model(**batch)).__name__ == "SequenceClassifierOutput"
    [found] = pipeline("text-classification", model=str(made.folder))("the film is good")
    assert found["label"] in NAMES
    [ours] = made.predict(["the film is good"])
    assert ours["label"] == found["label"]
    assert made.predict("the film is good") == [ours]
    assert ours["score"] == pytest.approx(found["score"], abs=1e-5)
    assert 0 <= ours["agreement"] <= 1


def test_folding_and_one_member(made: SavedEnsemble, tmp_path: Path) -> None:
    assert command("export", made.folder, "-o", tmp_path / "plain") == 0
    assert command("export", made.folder, "-o", tmp_path / "one", "--member", 2) == 0
    batch = inputs(made.folder)
    with torch.no_grad():
        outputs = made.model(**batch, output_members=True)
        for name, wanted in (("plain", outputs.logits), ("one", outputs.member_logits[2])):
            own = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
            assert type(own).__name__ == "BertForSequenceClassification"
            torch.testing.assert_close(own(**batch).logits, wanted, rtol=0, atol=1e-6)
    with pytest.raises(RecipeError, match="expected 0 to 2"):
        plait.export(made.folder, tmp_path / "no", member=3)
    with pytest.raises(OutputError, match="exists"):
        plait.export(made.folder, tmp_path / "one", member=1)


def test_one_encoder_pass_a_batch(made: SavedEnsemble, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.bert.modeling_bert import BertEncoder

    calls, own = [], BertEncoder.forward
    monkeypatch.setattr(BertEncoder, "forward", lambda *a, **k: calls.append(len(a[1])) or own(*a, **k))
    plait.evaluate(made.folder, place / "test.jsonl", batch_size=5)
    assert sorted(calls) == [2, 5, 5]


def test_out_of_scope(made: SavedEnsemble, place: Path) -> None:
    found = plait.evaluate(made.folder, place / "test.jsonl", out_of_scope=place / "strange.txt")["model"]
    assert found["out_of_scope_texts"] == 9
    for score in ("max_probability", "entropy", "mutual_information"):
        assert 0 <= found[f"auroc_{score}"] <= 1
        assert 0 <= found[f"aupr_{score}"] <= 1
    assert found["mean_probability_nll"] == pytest.approx(found["nll"], abs=0.1)
    with pytest.raises(RecipeError, match="needs an ensemble"):
        plait.evaluate(place / "seed1", place / "test.jsonl", out_of_scope=place / "strange.txt")


@pytest.mark.parametrize("method", METHODS)
def test_every_method(place: Path, tmp_path: Path, method: str) -> None:
    lone = method == "single"
    options = {**QUICK, "members": 1 if lone else 2}
    saved = plait.ensemble(
        place / "base", data=place / "train.jsonl", out=tmp_path / "e", method=method, **options
    )
    assert saved.method == method
    assert saved.members == options["members"]
    found = plait.evaluate(tmp_path / "e", place / "test.jsonl").tasks["model"]
    assert len(found.sources) == options["members"]
    again = plait.evaluate(tmp_path / "e", place / "test.jsonl").tasks["model"]
    assert found == again
    separate = method in ("separate", "codistillation")
    assert len(saved.folders) == (2 if separate else 1)
    sizes = saved.report["parameters"]
    if separate:
        assert sizes["saved"] == sum(t.numel() for f in saved.folders for t in weights(f).values())
        with pytest.raises(SourceError, match="2 separate models"):
            plait.load(saved.folder)
    if method == "batchensemble":
        assert sizes["saved"] < sizes["separate"]
    if not lone:
        assert found.metrics["consistency"] > 0
    plait.export(tmp_path / "e", tmp_path / "plain", member=0)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")


def test_the_first_of_separate_models_is_the_single_one(place: Path, tmp_path: Path) -> None:
    told = {"data": place / "train.jsonl", **QUICK, "members": None}
    single = plait.ensemble(place / "base", out=tmp_path / "single", method="single", **told)
    separate = plait.ensemble(
        place / "base", out=tmp_path / "separate", method="separate", **{**told, "members": 2}
    )
    one, two = (weights(folder) for folder in separate.folders)
    assert all(torch.equal(one[name], tensor) for name, tensor in weights(single.folder).items())
    assert not torch.equal(one["heads.out.weight"], two["heads.out.weight"])


@pytest.mark.parametrize("perturbation", ["none", "gaussian", "adversarial", "word-dropout"])
def test_every_perturbation(place: Path, tmp_path: Path, perturbation: str) -> None:
    told = {"data": place / "train.jsonl", "shared_layers": 1, "perturbation": perturbation, **QUICK}
    base = still(tmp_path / "base")
    saved = plait.ensemble(base, out=tmp_path / "e", **told)
    assert saved.report["recipe"]["replicate_at"] == (0 if perturbation == "word-dropout" else 1)
    replayed = plait.ensemble(base, out=tmp_path / "r", replay=True, **told)
    close(tmp_path / "r", tmp_path / "e")
    cost = [s.report["forward_equivalents"]["training_step"] for s in (saved, replayed)]
    assert cost[1] > cost[0]


def test_mixed_precision(place: Path, tmp_path: Path) -> None:
    told = {"perturbation": {"name": "adversarial", "at": "embeddings"}, "precision": "bfloat16", **QUICK}
    saved = plait.ensemble(place / "base", data=place / "train.jsonl", out=tmp_path / "e", **told)
    assert {tensor.dtype for tensor in weights(saved.folder).values()} == {torch.float32}
    assert saved.report["validation"]["metrics"]["consistency"] > 0


@pytest.mark.parametrize("head", ["linear", "tanh"])
@pytest.mark.parametrize("task", ["regression", "multi_label", "token", "pairs"])
def test_every_task(place: Path, tmp_path: Path, task: str, head: str) -> None:
    table = rows(40)
    if task == "regression":
        table["label"] = [len(text) / 10 for text in table["text"]]
    if task == "multi_label":
        table["label"] = [["long"] * (len(t) > 20) + ["film"] * ("film" in t) for t in table["text"]]
    if task == "token":
        table = tagged(40)
    if task == "pairs":
        table["text_pair"] = texts(40, seed=2)
    file = write(tmp_path / "d.jsonl", table)
    told = {"perturbation": {"name": "adversarial", "at": "embeddings"}, "head": head, **QUICK}
    saved = plait.ensemble(place / "base", data=file, out=tmp_path / "e", **told)
    found = plait.evaluate(saved.folder, file).tasks["model"]
    primary = {"regression": "pearson", "multi_label": "macro_f1"}.get(task, "accuracy")
    assert found.primary == primary
    assert found.metrics["consistency"] > 0
    if task == "regression":
        assert found.curve["risk"][-1] == pytest.approx(found.metrics["mse"], rel=1e-4)
    [said] = saved.predict([["the", "film"]] if task == "token" else ["the film"])
    assert said
    if task == "pairs":
        assert saved.predict([("the film", "a book")]) == saved.predict(
            {"text": ["the film"], "text_pair": ["a book"]}
        )
    if task == "token":
        [said] = saved.predict([["the"] * 70])
        assert said[69] is None  # beyond the length that it was trained with


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Path, family: str) -> None:
    save(tiny(family, "body"), tmp_path / "base")
    modern = family == "modernbert"
    told = {**QUICK, "data": rows(20), "perturbation": {"name": "dropout", "rate": 0.1}, "shared_layers": 1}
    if modern:
        with pytest.raises(RecipeError, match="drops nothing"):
            plait.ensemble(tmp_path / "base", out=tmp_path / "e", **{**told, "perturbation": "dropout"})
    plait.ensemble(tmp_path / "base", out=tmp_path / "e", **told)
    assert plait.evaluate(tmp_path / "e", rows(6, seed=3)).tasks["model"].examples == 6


@pytest.mark.parametrize("layers", ["all", 1, 0])
def test_from_models_that_exist(place: Path, tmp_path: Path, layers: Any) -> None:
    sources = [place / f"seed{seed}" for seed in (1, 2, 3)]
    saved = plait.ensemble(sources=sources, out=tmp_path / "e", shared_layers=layers, epochs=0)
    assert saved.members == 3
    own = [AutoModelForSequenceClassification.from_pretrained(s).state_dict() for s in sources]
    made = weights(saved.folder)
    shared = "bert.encoder.layer.0.output.dense.weight"
    if layers != 0:
        mean = torch.stack([state[shared] for state in own]).mean(0)
        torch.testing.assert_close(made[f"encoder.{shared}"], mean)
    for member, state in enumerate(own):
        assert torch.equal(made["heads.out.weight"][member], state["classifier.weight"])
        private = "bert.encoder.layer.1.output.dense.weight".replace("1.", f"1.members.{member}.")
        if layers != "all":
            assert torch.equal(made[f"encoder.{private}"], state["bert.encoder.layer.1.output.dense.weight"])


def test_models_that_exist_are_trained_on(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    asked = [
        "ensemble",
        "--from",
        place / "seed1",
        place / "seed2",
        "--data",
        place / "train.jsonl",
        "-o",
        out,
    ]
    assert command(*asked, "--shared-layers", 1, "--epochs", 1, "--max-length", 16) == 0
    assert SavedEnsemble(out).members == 2
    assert SavedEnsemble(out).labels == NAMES


def test_recipe(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = f"""
        combine: ensemble
        base: {place}/base
        data: {place}/train.jsonl
        members: 2
        shared_layers: 1
        head: tanh
        perturbation: {{name: gaussian, strength: 0.05}}
        consistency: {{name: ensemble, detach: true}}
        alpha: 2.0
        epochs: 1
        max_length: 16
        output: {tmp_path}/ens
    """
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("\n".join(line.strip() for line in content.splitlines()))
    assert command("check", recipe, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"]["live"] < told["parameters"]["separate"]
    assert told["consistency"] == {"name": "ensemble", "detach": True}
    saved = plait.run(recipe)
    assert (
        plait.run(saved.report["recipe"], overwrite=True).report["parameters"] == saved.report["parameters"]
    )


def test_methods_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    found = plait.methods()
    assert {"perturbation adversarial", "consistency pairwise", "ensemble camero"} <= set(found)
    assert found["perturbation gaussian"]["options"]["strength"]["default"] == 0.1
    assert {*METHODS, *ONE_MODEL} == {name.partition(" ")[2] for name in found if name.startswith("ensemble ")}
    assert len(FITS) == len(Build)


BAD: list[tuple[type[PlaitError], str, dict[str, Any]]] = [
    (RecipeError, "shared_layers is 3; the encoder has 2 layers", {"shared_layers": 3}),
    (RecipeError, "shared_layers is 'some': expected all, or how many", {"shared_layers": "some"}),
    (RecipeError, "members is 0; expected 1 or more", {"members": 0}),
    (RecipeError, "strength is 0.0; expected", {"perturbation": "gaussian", "strength": 0}),
    (RecipeError, "strength is nan; expected", {"perturbation": "adversarial", "strength": float("nan")}),
    (RecipeError, "rate is 1.5; expected", {"perturbation": "word-dropout", "strength": 1.5}),
    (RecipeError, "given twice", {"perturbation": {"name": "gaussian", "strength": 1}, "strength": 1}),
    (RecipeError, "did you mean 'gaussian'", {"perturbation": "gausian"}),
    (RecipeError, "did you mean 'pairwise'", {"consistency": "pairwize"}),
    (RecipeError, "did you mean 'camero'", {"method": "camera"}),
    (RecipeError, "has no option 'hold'", {"consistency": {"name": "pairwise", "hold": True}}),
    (RecipeError, "alpha is -1", {"alpha": -1}),
    (RecipeError, "method shared does not use alpha", {"method": "shared", "alpha": 2}),
    (RecipeError, "does not use members", {"method": "single"}),
    (RecipeError, "separate does not use shared_layers", {"method": "separate", "shared_layers": 1}),
    (RecipeError, "trains with dropout alone", {"method": "batchensemble", "perturbation": "gaussian"}),
    (RecipeError, "expected dropout", {"method": "mc-dropout", "perturbation": "word-dropout"}),
    (RecipeError, "replicate_at is 1, and perturbation", {"replicate_at": 1, "perturbation": "word-dropout"}),
    (RecipeError, "replicate_at is 5", {"replicate_at": 5}),
    (RecipeError, "multiple of 3", {"accumulate": 3}),
    (RecipeError, "method one: temperature is 0", {"method": {"name": "one", "temperature": 0}}),
    (RecipeError, "epochs is 0", {"epochs": 0}),
    (RecipeError, "did you mean 'matthews'", {"metric": "mathews"}),
    (RecipeError, "no score 'pearson' of single label classification", {"metric": "pearson"}),
    (RecipeError, "give validation data", {"metric": "nll", "held_back": 0}),
    (RecipeError, "unknown key 'epoch'", {"epoch": 3}),
    (DataError, "has no labels", {"data": ["some", "texts"]}),
    (DataError, "less than a batch of 64", {"batch_size": 64}),
    (DataError, "labels odd are not the head's", {"validation": {"text": ["a b"], "label": ["odd"]}}),
    (DataError, "no data given", {"data": None}),
]


@pytest.mark.parametrize(("error", "match", "changes"), BAD, ids=[match for _, match, _ in BAD])
def test_bad_input(
    place: Path, tmp_path: Path, error: type[PlaitError], match: str, changes: dict[str, Any]
) -> None:
    told = {"data": place / "train.jsonl", **QUICK, **changes}
    with pytest.raises(error, match=match):
        plait.ensemble(place / "base", out=tmp_path / "e", **told)
    assert list(tmp_path.iterdir()) == []


def test_models_that_do_not_go_together(place: Path, tmp_path: Path) -> None:
    other = tiny("bert", "sequence", seed=4, labels=2)
    other.config.id2label = {0: "up", 1: "down"}
    save(other, tmp_path / "labels")
    save(tiny("roberta", "sequence", labels=2), tmp_path / "cousin")
    for stranger, said in (("labels", "labels differ"), ("cousin", "architecture differs")):
        with pytest.raises(MergeError, match=said):
            plait.ensemble(sources=[place / "seed1", tmp_path / stranger], out=tmp_path / "e", epochs=0)
    with pytest.raises(RecipeError, match="both of base and from"):
        plait.ensemble(place / "base", sources=[place / "seed1"], out=tmp_path / "e", epochs=0)
    shutil.copytree(place / "seed1", tmp_path / "shouts")
    tiny_tokenizer("bert", do_lower_case=False).save_pretrained(tmp_path / "shouts")
    with pytest.raises(MergeError, match="tokenizers differ"):
        plait.ensemble(sources=[place / "seed1", tmp_path / "shouts"], out=tmp_path / "e", epochs=0)
    save(tiny("distilbert", "sequence", labels=2), tmp_path / "distil")
    with pytest.raises(RecipeError, match="no place for a tanh head"):
        plait.ensemble(sources=[tmp_path / "distil"], head="tanh", out=tmp_path / "e", epochs=0)
    with pytest.raises(RecipeError, match="members is 5, and 1 models"):
        plait.ensemble(sources=[place / "seed1"], out=tmp_path / "e", epochs=0, members=5)
    assert command("ensemble", "-o", tmp_path / "e", "--data", "x.csv") == 2


def test_a_model_without_a_tokenizer_takes_the_others(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "seed1", tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    saved = plait.ensemble(sources=[tmp_path / "mute", place / "seed2"], out=tmp_path / "e", epochs=0)
    assert saved.predict(["the film"])


def test_a_label_that_nobody_teaches(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=[*NAMES, "oos"])}
    )
    data = datasets.Dataset.from_dict({"text": texts(20), "label": [0, 1] * 10}, features=kinds)
    saved = plait.ensemble(place / "base", data=data, out=tmp_path / "e", **QUICK)
    assert "no example to train on for label oos" in caplog.text
    assert saved.labels == (*NAMES, "oos")
    strange = {"text": texts(6, seed=2), "label": ["oos", "good"] * 3}
    assert 0 <= plait.evaluate(saved.folder, strange)["model"]["accuracy"] <= 1


@pytest.mark.parametrize("head", ["linear", "tanh"])
def test_where_only_the_head_drops(tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str) -> None:
    base = tmp_path / "base"
    save(tiny("albert", "body"), base)  # its layers drop nothing by default, its head does
    told = {**QUICK, "data": rows(20), "head": head}
    assert plait.ensemble(base, out=tmp_path / "e", **told).report["validation"]["metrics"]["consistency"] > 0
    assert "drops in its head alone" in caplog.text
    with pytest.raises(RecipeError, match="drops nothing"):
        plait.ensemble(base, out=tmp_path / "no", **told, classifier_dropout=0.0)
    assert not (tmp_path / "no").exists()


def test_existing_output(made: SavedEnsemble, place: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists and is not empty"):
        plait.ensemble(place / "base", data=place / "train.jsonl", out=made.folder, **QUICK)
    with pytest.raises(OutputError, match="overlap"):
        plait.ensemble(place / "base", data=place / "train.jsonl", out=place / "base" / "in", **QUICK)


def test_ensembles_where_ordinary_models_are_wanted(
    made: SavedEnsemble, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (
        ("ensemble", made.folder, "--data", place / "train.jsonl"),
        ("merge", f"a={made.folder}", f"b={place}/seed1"),
        ("amalgamate", f"a={made.folder}", "--text", place / "strange.txt", "--student", place / "base"),
    )
    for arguments in asked:
        assert command(*arguments, "-o", tmp_path / "no") == 2, arguments
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("error: ")
    assert not (tmp_path / "no").exists()


def test_damaged_ensembles(made: SavedEnsemble, place: Path, tmp_path: Path) -> None:
    for name in ("weights", "tokenizer"):
        shutil.copytree(made.folder, tmp_path / name)
    with (tmp_path / "weights" / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    for name in ("weights", "tokenizer"):
        with pytest.raises(SourceError, match=str(tmp_path / name)):
            plait.evaluate(tmp_path / name, place / "test.jsonl")
