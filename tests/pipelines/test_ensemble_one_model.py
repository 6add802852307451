"""Members that teach one model, or are averaged into one: end to end on tiny real models of several families."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, pipeline

import plait
from plait.errors import DataError, MergeError, OutputError, PlaitError, RecipeError, SourceError
from plait.reports.record import kind_of
from plait.teachers import open_store
from plait.teachers.mc_dropout import Scorer
from plait.training import trainer as loop
from tests.ensembles import NAMES, QUICK, command, inputs, prepare, rows, tagged, weights, write
from tests.models import save, texts, tiny

ONE = {name: value for name, value in QUICK.items() if name != "members"}
AVERAGED = ("soup", "greedy_soup", "swa", "deni")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("one"))
    write(folder / "more.jsonl", {"text": texts(30, seed=9)})
    for family, names in (("roberta", NAMES[::-1]), ("distilbert", ("Bad", "GOOD"))):
        model = tiny(family, "sequence", seed=4, labels=2)
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: at for at, name in enumerate(names)}
        save(model, folder / family)
    return folder


@pytest.fixture(scope="module")
def made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> plait.api.SavedEnsemble:
    return plait.ensemble(
        place / "base", data=place / "train.jsonl", texts=place / "more.jsonl", keep_members=True,
        out=tmp_path_factory.mktemp("made") / "e", **QUICK,
    )  # fmt: skip


def test_command_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, asked = tmp_path / "e", ["ensemble", place / "base", "--data", place / "train.jsonl"]
    asked += ["--text", place / "more.jsonl", "--text", place / "strange.txt", "--method", "distilled"]
    asked += ["--validation", place / "test.jsonl", "--members", 2, "--epochs", 1, "--student-epochs", 2]
    asked += ["--max-length", 16, "--batch-size", 8, "--set", "method.mixture=0.3", "--keep-members", "-o", out]
    assert command(*asked, "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["unlabelled"], told["members"], told["method"]) == (39, 2, {"name": "distilled", "mixture": 0.3})
    # 3 of each of two members, and of the student 3 for each of 79 texts to 40; the members are asked once.
    wanted = {"training_step": 6 + 3 * 79 / 40, "training": 6 + 2 * 79 / 40 + 2 * 3 * 79 / 40, "prediction": 1}
    assert told["forward_equivalents"] == pytest.approx(wanted, abs=1e-3)
    assert not list(tmp_path.iterdir())
    assert command(*asked, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    own = AutoModelForSequenceClassification.from_pretrained(out)
    assert type(own).__name__ == "BertForSequenceClassification"
    assert sum(p.numel() for p in own.parameters()) == report["parameters"]["saved"] == told["parameters"]["saved"]
    assert report["recipe"]["student_epochs"] == 2
    assert [entry.get("member") for entry in report["epochs"]] == [0, 1, None, None]
    assert {"loss/task", "loss/distillation"} <= set(report["losses"][-1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "e.members", "e.posteriors"]
    assert open_store(tmp_path / "e.posteriors").count == 79
    assert command("evaluate", out, "--data", place / "test.jsonl", "--json") == 0
    found = json.loads(capsys.readouterr().out)["tasks"]["model"]
    assert found["metrics"]["nll"] == pytest.approx(report["validation"]["metrics"]["nll"], abs=1e-5)
    assert list(found["sources"]) == ["member-0", "member-1", "all members, mean probabilities"]
    assert command("evaluate", out, "--data", place / "test.jsonl") == 0
    assert "member-1: accuracy" in capsys.readouterr().out
    assert command("inspect", out, "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["teachers"]) == {"member-0", "member-1"}
    assert command(*asked, "--overwrite") == 0
    said = capsys.readouterr().out
    assert "one model of 2 members by distilled" in said
    assert "taught by member-0, member-1 on 40 texts with labels and 39 without" in said


def test_the_result_needs_no_plait(made: Any, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom transformers import AutoModelForSequenceClassification as A, AutoTokenizer as T\n"
        "m, t = A.from_pretrained(sys.argv[1]), T.from_pretrained(sys.argv[1])\n"
        "assert not any(n.split('.')[0] == 'plait' for n in sys.modules)\n"
        "print(type(m).__name__, m.config.id2label, m(**t('the film', return_tensors='pt')).logits.shape[-1])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(made.folder)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "BertForSequenceClassification {0: 'bad', 1: 'good'} 2"


def test_it_is_an_ordinary_model(made: Any, place: Path, tmp_path: Path) -> None:
    assert kind_of(made.folder) == "one_model"
    assert made.method == "distilled"  # with texts and no method
    assert (made.plain, made.members, made.labels) == (True, 1, NAMES)
    assert isinstance(plait.load(made.folder), PreTrainedModel)
    [ours] = made.predict(["the film is good"])
    [theirs] = pipeline("text-classification", model=str(made.folder))("the film is good")
    assert ours == {"label": theirs["label"], "score": pytest.approx(theirs["score"], abs=1e-5)}
    card = (made.folder / "README.md").read_text()
    for words in ("taught by 2 models", "30 texts without labels", "member-1", "without Plait"):
        assert words in card
    found = plait.evaluate(made, place / "test.jsonl", out_of_scope=place / "strange.txt")["model"]
    assert {"nll", "brier", "auroc_entropy"} <= set(found)
    plait.evaluate(made.folder, place / "test.jsonl", sources=False)
    for at, said in enumerate((made, made.folder)):
        plait.export(said, tmp_path / str(at), member=0 if at else None)
        assert all(torch.equal(weights(made.folder)[n], t) for n, t in weights(tmp_path / str(at)).items())
        with pytest.raises(RecipeError, match="is one ordinary model: leave --task and --member out"):
            plait.export(said, tmp_path / "no", member=1)
    # What it is made of can teach and be merged as any other checkpoint can.
    again = plait.ensemble(
        place / "base", sources=[made.folder], texts=place / "more.jsonl", out=tmp_path / "again", **ONE
    )
    assert list(again.report["teachers"]) == [made.folder.name]


def test_members_are_those_of_separate(made: Any, place: Path, tmp_path: Path) -> None:
    plait.ensemble(
        place / "base", data=place / "train.jsonl", out=tmp_path / "s", method="separate", **QUICK
    )
    for member in range(2):
        plait.export(tmp_path / "s", tmp_path / str(member), member=member)
        one, two = weights(tmp_path / str(member)), weights(made.folder.with_name("e.members") / str(member))
        assert all(torch.equal(one[name], tensor) for name, tensor in two.items())


def test_the_student_is_drawn_to_its_teachers(place: Path, tmp_path: Path) -> None:
    told = {"sources": [place / f"seed{s}" for s in (1, 2, 3)], "texts": texts(64, seed=4), **ONE}
    answers = []
    for epochs in (0.01, 20):
        saved = plait.ensemble(
            place / "base", method="distilled", out=tmp_path / str(epochs), **{**told, "epochs": epochs}
        )
        with torch.no_grad():
            mine = saved.model(**inputs(saved.folder)).logits.softmax(-1)
        answers.append(mine)
    own = [AutoModelForSequenceClassification.from_pretrained(s).eval() for s in told["sources"]]
    with torch.no_grad():
        wanted = torch.stack([m(**inputs(place / "seed1")).logits.softmax(-1) for m in own]).mean(0)
    far, near = (float((mine - wanted).abs().mean()) for mine in answers)
    assert near < 0.3 * far


def test_teachers_of_other_families_and_label_orders(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "store"
    sources = [place / "seed1", place / "roberta", place / "distilbert"]
    asked = ["ensemble", place / "base", "--from", *sources, "--text", place / "more.jsonl", "--method"]
    asked += ["distilled", "--data", place / "train.jsonl", "--epochs", 1, "--max-length", 16, "--store", folder]
    assert command(*asked, "--batch-size", 8, "-o", tmp_path / "e") == 0
    report = json.loads((tmp_path / "e" / "plait.json").read_text())
    assert [about["architecture"] for about in report["teachers"].values()] == [
        "BertForSequenceClassification", "RobertaForSequenceClassification", "DistilBertForSequenceClassification",
    ]  # fmt: skip
    assert report["labels"] == list(NAMES)
    assert open_store(folder).posterior("roberta").logits.shape == (66, 2)  # 36 with labels
    scores = plait.evaluate(tmp_path / "e", place / "test.jsonl").tasks["model"].sources
    alone = plait.evaluate(place / "roberta", place / "test.jsonl")["model"]
    assert scores["roberta"]["accuracy"] == alone["accuracy"]


def test_a_student_without_a_base(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sources = [place / "seed1", place / "roberta", place / "distilbert"]
    found = plait.ensemble(
        sources=sources, texts=place / "more.jsonl", method="distilled", out=tmp_path / "f", **ONE
    )
    assert f"the student starts from {place}/seed1" in caplog.text
    assert found.checkpoint.architecture == "BertForSequenceClassification"
    assert found.report["data"]["examples"] == 0
    assert found.report["unlabelled"] == 30
    again = plait.run(
        {**found.report["recipe"], "text": str(place / "more.jsonl"), "output": str(tmp_path / "g")}
    )
    assert all(torch.equal(weights(again.folder)[name], t) for name, t in weights(found.folder).items())
    shutil.copytree(place / "seed2", tmp_path / "known")
    (tmp_path / "known" / "plait.json").write_text(json.dumps({"base": str(place / "base")}))
    recorded = plait.ensemble(
        sources=[tmp_path / "known"], texts=texts(9), method="distilled", out=tmp_path / "h", **ONE
    )
    assert (recorded.folder / recorded.report["base"]).resolve() == (place / "base").resolve()


def test_answers_are_computed_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, own = [0], Scorer.score

    def counted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        return own(*arguments, **options)

    monkeypatch.setattr(Scorer, "score", counted)
    told = {"sources": [place / "seed1", place / "seed2"], "texts": place / "more.jsonl", "store": tmp_path / "s"}
    plait.ensemble(place / "base", method="distilled", out=tmp_path / "a", **told, **ONE)
    assert calls == [2]
    plait.ensemble(place / "base", method="hydra", out=tmp_path / "b", **told, **ONE)
    one = {**told, "sources": [place / "seed2"]}
    plait.ensemble(place / "base", method={"name": "distilled", "temperature": 2}, out=tmp_path / "c", **one, **ONE)
    assert calls == [2]
    with pytest.raises(DataError, match="the store was made otherwise"):
        plait.ensemble(place / "base", method="hydra", out=tmp_path / "d", **{**told, "texts": texts(9)}, **ONE)


def test_a_hydra_is_an_ensemble_of_one_pass(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.bert.modeling_bert import BertEncoder

    saved = plait.ensemble(
        place / "base", sources=[place / f"seed{s}" for s in (1, 2, 3)], texts=texts(64, seed=4), method="hydra",
        out=tmp_path / "e", **{**ONE, "epochs": 12},
    )  # fmt: skip
    assert kind_of(saved.folder) == "ensemble"
    assert (saved.members, saved.config.shared_layers) == (3, 2)
    calls, own = [], BertEncoder.forward
    monkeypatch.setattr(BertEncoder, "forward", lambda *a, **k: calls.append(len(a[1])) or own(*a, **k))
    found = plait.evaluate(saved.folder, place / "test.jsonl", batch_size=6).tasks["model"]
    assert calls == [6, 6]
    assert len(found.sources) == 3
    assert found.metrics["consistency"] > 0
    with torch.no_grad():
        heads = saved.model(**inputs(saved.folder), output_members=True).member_logits.softmax(-1)
        own_answers = torch.stack([
            AutoModelForSequenceClassification.from_pretrained(place / f"seed{s}")
            .eval()(**inputs(place / "seed1")).logits.softmax(-1) for s in (1, 2, 3)
        ])  # fmt: skip
    distances = torch.cdist(heads.flatten(1), own_answers.flatten(1))
    assert distances.argmin(1).tolist() == [0, 1, 2]  # each head stands for its own member


@pytest.mark.parametrize("method", ["distilled", "hydra"])
@pytest.mark.parametrize("task", ["regression", "multi_label", "pairs"])
def test_every_task(place: Path, tmp_path: Path, task: str, method: str) -> None:
    table, more = rows(40), {"text": texts(20, seed=7)}
    if task == "regression":
        table["label"] = [len(text) / 10 for text in table["text"]]
    if task == "multi_label":
        table["label"] = [["long"] * (len(t) > 20) + ["film"] * ("film" in t) for t in table["text"]]
    if task == "pairs":
        table["text_pair"], more["text_pair"] = texts(40, seed=2), texts(20, seed=3)
    file = write(tmp_path / "d.jsonl", table)
    saved = plait.ensemble(
        place / "base", data=file, texts=write(tmp_path / "more.jsonl", more), method=method, keep_members=True,
        out=tmp_path / "e", **QUICK,
    )  # fmt: skip
    found = plait.evaluate(saved.folder, file).tasks["model"]
    assert found.primary == {"regression": "pearson", "multi_label": "macro_f1"}.get(task, "accuracy")
    assert len(found.sources) == (3 if method == "distilled" else 2)
    asked = [("the film", "a book")] if task == "pairs" else ["the film"]
    assert saved.predict(asked)
    assert saved.problem == {"regression": "regression", "multi_label": "multi_label_classification"}.get(
        task, "single_label_classification"
    )


@pytest.mark.parametrize("method", AVERAGED)
def test_averaged_into_one_ordinary_checkpoint(place: Path, tmp_path: Path, method: str) -> None:
    told = {"data": place / "train.jsonl", **(ONE if method == "swa" else QUICK), "epochs": 2}
    saved = plait.ensemble(place / "base", out=tmp_path / "e", method=method, **told)
    assert saved.plain
    assert saved.report["forward_equivalents"]["prediction"] == 1
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path / "e").eval()
    with torch.no_grad():
        torch.testing.assert_close(own(**inputs(saved.folder)).logits, saved.model(**inputs(saved.folder)).logits)
    found = plait.evaluate(saved.folder, place / "test.jsonl").tasks["model"]
    assert found.sources == {}
    assert saved.report["validation"]["metrics"]["nll"] > 0
    assert f"`{method}`" in (saved.folder / "README.md").read_text()
    wanted: dict[str, Any] = {"soup": [0, 1], "swa": [2], "deni": None}
    if method in wanted:
        assert saved.report.get("averaged") == wanted[method]


def test_a_soup_is_the_mean_of_models_that_start_with_one_head(place: Path, tmp_path: Path) -> None:
    saved = plait.ensemble(
        place / "base", data=place / "train.jsonl", out=tmp_path / "e", method="soup", keep_members=True, **QUICK
    )
    parts = [weights(tmp_path / "e.members" / str(j)) for j in range(2)]
    made = weights(saved.folder)
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, (parts[0][name] + parts[1][name]) / 2)
    assert not torch.equal(*(part["bert.encoder.layer.0.output.dense.weight"] for part in parts))
    heads = [part["classifier.weight"].flatten() for part in parts]
    assert float(torch.cosine_similarity(*heads, dim=0)) > 0.9
    again = plait.ensemble(
        sources=[tmp_path / "e.members" / str(j) for j in range(2)], out=tmp_path / "again", method="soup"
    )
    assert all(torch.equal(made[name], tensor) for name, tensor in weights(again.folder).items())


def test_a_soup_of_models_that_exist_minds_their_labels(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turned = AutoModelForSequenceClassification.from_pretrained(place / "seed2")
    turned.config.id2label, turned.config.label2id = dict(enumerate(NAMES[::-1])), {"good": 0, "bad": 1}
    with torch.no_grad():
        turned.classifier.weight.copy_(turned.classifier.weight.flip(0))
        turned.classifier.bias.copy_(turned.classifier.bias.flip(0))
    turned.save_pretrained(tmp_path / "turned")
    AutoTokenizer.from_pretrained(place / "seed2").save_pretrained(tmp_path / "turned")
    made = [
        weights(plait.ensemble(sources=[place / "seed1", other], method="soup", out=tmp_path / f"e{at}").folder)
        for at, other in enumerate((place / "seed2", tmp_path / "turned"))
    ]
    assert all(torch.equal(made[0][name], tensor) for name, tensor in made[1].items())
    assert "they did not start alike" in caplog.text


def test_a_greedy_soup_takes_what_helps(place: Path, tmp_path: Path) -> None:
    spoilt = AutoModelForSequenceClassification.from_pretrained(place / "seed2")
    with torch.no_grad():
        spoilt.classifier.weight.mul_(-50)
        spoilt.classifier.bias.add_(torch.tensor([90.0, -90.0]))
    spoilt.save_pretrained(tmp_path / "spoilt")
    AutoTokenizer.from_pretrained(place / "seed2").save_pretrained(tmp_path / "spoilt")
    told = {"data": place / "test.jsonl", "method": "greedy_soup", "metric": "nll"}
    saved = plait.ensemble(sources=[tmp_path / "spoilt", place / "seed1"], out=tmp_path / "e", **told)
    assert saved.report["averaged"] == [1]
    one, made = weights(place / "seed1"), weights(saved.folder)
    assert all(torch.equal(one[name], tensor) for name, tensor in made.items())


def test_starting_from_the_soup(place: Path, tmp_path: Path) -> None:
    told = {"data": place / "train.jsonl", "method": {"name": "distilled", "start": "soup"}, "keep_members": True}
    plait.ensemble(place / "base", out=tmp_path / "e", **told, **{**QUICK, "student_epochs": 0.01})
    parts = [weights(tmp_path / "e.members" / str(j)) for j in range(2)]
    made = weights(tmp_path / "e")
    name = "bert.encoder.layer.1.output.dense.weight"
    mean, base = (parts[0][name] + parts[1][name]) / 2, weights(place / "base")[name.removeprefix("bert.")]
    assert float((made[name] - mean).norm()) < 0.5 * float((made[name] - base).norm())  # one step from the mean
    with pytest.raises(RecipeError, match="start soup begins with the mean of the models after from"):
        plait.ensemble(
            place / "base", sources=[place / "seed1"], texts=texts(9), method={"name": "distilled", "start": "soup"},
            out=tmp_path / "f",
        )  # fmt: skip
    with pytest.raises(MergeError, match="architecture differs"):
        plait.ensemble(
            sources=[place / "seed1", place / "roberta"], texts=texts(9),
            method={"name": "distilled", "start": "soup"}, out=tmp_path / "f",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "stop"),
    [("distilled", 10), ("distilled", 27), ("soup", 12), ("swa", 6), ("deni", 4), ("deni", 10), ("hydra", 22)],
)
def test_a_stopped_run_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, stop: int
) -> None:
    told = {"data": place / "train.jsonl", "method": method, **(ONE if method == "swa" else QUICK), "epochs": 2}
    if method in ("distilled", "hydra"):
        told["texts"] = place / "more.jsonl"
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
    assert not (tmp_path / "e").exists()
    again = plait.ensemble(place / "base", out=tmp_path / "e", resume=True, **told)
    one, two = weights(again.folder), weights(whole.folder)
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())
    assert again.report["validation"] == whole.report["validation"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "whole"]


def test_recipe(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"combine: ensemble\nbase: {place}/base\nfrom: [{place}/seed1, {place}/roberta]\n"
        f"text: [{place}/more.jsonl, {{path: {place}/strange.txt}}]\n"
        f"method: {{name: distilled, mixture: 0.4, temperature: 2}}\nepochs: 1\nmax_length: 16\noutput: {tmp_path}/e\n"
    )
    assert command("check", recipe, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["unlabelled"], told["from"]) == (39, [f"{place}/seed1", f"{place}/roberta"])
    saved = plait.run(recipe)
    again = plait.run(saved.report["recipe"], overwrite=True)
    assert again.report["recipe"] == saved.report["recipe"]
    assert again.report["losses"] == saved.report["losses"]
    capsys.readouterr()
    assert command("run", recipe, "--overwrite") == 0
    assert "one model of 2 members" in capsys.readouterr().out


BAD: list[tuple[type[PlaitError], str, dict[str, Any]]] = [
    (RecipeError, "method camero does not use text; leave it out, or choose method distilled or hydra",
     {"method": "camero", "texts": texts(4)}),
    (RecipeError, "method soup does not use store", {"method": "soup", "store": "s"}),
    (RecipeError, "method swa does not use members", {"method": "swa", "members": 3}),
    (RecipeError, "method deni does not use keep_members", {"method": "deni", "keep_members": True}),
    (RecipeError, "method distilled does not use alpha", {"method": "distilled", "alpha": 2}),
    (RecipeError, "method distilled does not use shared_layers", {"method": "distilled", "shared_layers": 1}),
    (RecipeError, "trains with dropout alone", {"method": "distilled", "perturbation": "gaussian"}),
    (RecipeError, "epochs is 0; expected more", {"method": "distilled", "epochs": 0}),
    (RecipeError, "tries the models on rows that are held back", {"method": "greedy_soup", "held_back": 0}),
    (DataError, "some data hold pairs of texts and others do not",
     {"method": "distilled", "texts": {"text": texts(4), "text_pair": texts(4)}}),
    (DataError, "no text in", {"method": "distilled", "texts": ["", " "]}),
    (RecipeError, "distilled has no option 'mix'.*mixture", {"method": {"name": "distilled", "mix": 1}}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "match", "changes"), BAD)
def test_what_cannot_be(
    place: Path, tmp_path: Path, error: type[PlaitError], match: str, changes: dict[str, Any]
) -> None:
    told = {"data": place / "train.jsonl", **ONE, **changes}
    with pytest.raises(error, match=match):
        plait.ensemble(place / "base", out=tmp_path / "e", **told)
    assert list(tmp_path.iterdir()) == []


def test_teachers_that_cannot_be(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*sources: Path, **more: Any) -> Any:
        return plait.ensemble(
            place / "base", sources=sources, texts=texts(9), method="distilled", out=tmp_path / "no", **more
        )

    other = tiny("bert", "sequence", seed=4, labels=3)
    other.config.id2label = {0: "bad", 1: "good", 2: "so so"}
    save(other, tmp_path / "three")
    save(tiny("bert", "regression"), tmp_path / "number")
    save(tiny("bert", "token", labels=2), tmp_path / "tagger")
    with pytest.raises(MergeError, match="three has so so besides; expected a model of the labels bad; good"):
        asked(place / "seed1", tmp_path / "three")
    with pytest.raises(MergeError, match="answer different questions"):
        asked(place / "seed1", tmp_path / "number")
    with pytest.raises(SourceError, match=r"base has no classification head.*tagger is a model for token"):
        asked(place / "seed1", place / "base", tmp_path / "tagger")
    plait.ensemble(sources=[place / "seed1", place / "seed2"], out=tmp_path / "several", epochs=0)
    with pytest.raises(RecipeError, match="several: an ensemble has several members; plait export it first"):
        asked(place / "seed1", tmp_path / "several")
    plait.merge({"a": place / "seed1", "b": place / "seed2"}, out=tmp_path / "merged")
    with pytest.raises(RecipeError, match="merged: a merged checkpoint has several heads"):
        asked(tmp_path / "merged")
    with pytest.raises(RecipeError, match="keep_members and student_epochs are for members that are trained"):
        asked(place / "seed1", keep_members=True)
    with pytest.raises(DataError, match="a student needs --data FILE with labels, --text FILE without, or both"):
        plait.ensemble(place / "base", sources=[place / "seed1"], method="distilled", out=tmp_path / "no")
    with pytest.raises(RecipeError, match="teaches what whole texts are; found data for token classification"):
        plait.ensemble(
            place / "base", data=write(tmp_path / "t.jsonl", tagged(20)), method="distilled", out=tmp_path / "no"
        )
    (tmp_path / "out.members").mkdir()
    (tmp_path / "out.members" / "x").write_text("x")
    with pytest.raises(OutputError, match=r"out\.members exists"):
        plait.ensemble(
            place / "base", data=place / "train.jsonl", method="distilled", keep_members=True, out=tmp_path / "out"
        )
    assert command("ensemble", place / "base", "--from", place / "seed1", "--data", "x.csv", "-o", tmp_path / "no") == 2
    assert "methods distilled and hydra take one base before it, which learns" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_options_of_a_method_need_no_prefix(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["ensemble", place / "base", "--data", place / "train.jsonl", "--dry-run", "--json", "-o", tmp_path / "e"]
    told = ["--method", "distilled", "--set", "temperature=2", "--set", "start=soup"]
    assert command(*asked, "--batch-size", 8, *told) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == {"name": "distilled", "temperature": 2, "start": "soup"}
    # A perturbation that is named comes first.
    named = ["--perturbation", "adversarial", "--set", "start=0.01", "--set", "method.spread=0.2"]
    assert command(*asked, "--batch-size", 8, "--method", "camero", *named[:-2]) == 0
    assert json.loads(capsys.readouterr().out)["perturbation"]["start"] == 0.01
    assert command(*asked, "--batch-size", 8, "--method", "batchensemble", "--set", "spread=0.2") == 0
    assert json.loads(capsys.readouterr().out)["method"] == {"name": "batchensemble", "spread": 0.2}
    assert command(*asked, "--method", "distilled", "--set", "temprature=2") == 2
    assert "no option 'temprature'" in capsys.readouterr().err


def test_less_than_one_epoch(place: Path, tmp_path: Path) -> None:
    told = {"data": place / "train.jsonl", "method": "swa", **ONE, "epochs": 0.5}
    assert plait.ensemble(place / "base", out=tmp_path / "e", **told).report["averaged"] == [1]


def test_two_teachers_of_one_name(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "seed2", tmp_path / "x" / "seed1")
    saved = plait.ensemble(
        place / "base", sources=[place / "seed1", tmp_path / "x" / "seed1"], texts=place / "more.jsonl",
        out=tmp_path / "e", **ONE,
    )  # fmt: skip
    assert list(saved.report["teachers"]) == ["seed1", "seed1-2"]
