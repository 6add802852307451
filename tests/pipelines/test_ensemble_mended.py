"""What a second review of the ensembles found: calls that crashed, options that were lost or wrongly refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import plait
from plait.cli import interruption
from plait.ensembles.consistency import ensemble, pairwise
from plait.ensembles.plan import plan
from plait.ensembles.saved import SavedEnsemble
from plait.errors import RecipeError, SourceError
from plait.recipe import EnsembleRecipe
from plait.training.state import training_state
from tests.ensembles import QUICK, command, inputs, prepare, weights
from tests.models import save, tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> SavedEnsemble:
    sources, out = [place / "seed1", place / "seed2"], tmp_path_factory.mktemp("made") / "ens"
    return plait.ensemble(sources=sources, out=out, epochs=0, shared_layers=1)


@pytest.fixture(scope="module")
def trained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> SavedEnsemble:
    out = tmp_path_factory.mktemp("trained") / "ens"
    return plait.ensemble(place / "base", data=place / "train.jsonl", out=out, **QUICK)


def test_more_tokens_survive_saving(made: SavedEnsemble, tmp_path: Path) -> None:
    model, texts = plait.load(made.folder), inputs(made.folder)
    expected = model(**texts).logits
    model.resize_token_embeddings(200)
    assert (
        model.config.vocab_size == model.config.encoder.vocab_size == model.encoder.config.vocab_size == 200
    )
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert len(again.get_input_embeddings().weight) == again.config.vocab_size == 200
    torch.testing.assert_close(again(**texts).logits, expected)


@pytest.mark.parametrize("name", ["position_ids", "attention_mask"])
def test_one_row_stands_for_all_examples(made: SavedEnsemble, name: str) -> None:
    model, texts = plait.load(made.folder), inputs(made.folder)
    rows, length = texts["input_ids"].shape
    given = torch.arange(length) if name == "position_ids" else (torch.arange(length) < 4).long()
    expected = model(**{**texts, name: given.repeat(rows, 1)}, replicate_at=0).logits
    for depth in (0, 1):
        found = model(**{**texts, name: given[None]}, replicate_at=depth).logits
        torch.testing.assert_close(found, expected)


def test_hidden_states_by_configuration(place: Path, made: SavedEnsemble, tmp_path: Path) -> None:
    whole = plait.ensemble(sources=[place / "seed1", place / "seed2"], out=tmp_path / "a", epochs=0).model
    one = plait.ensemble(sources=[place / "seed1"], out=tmp_path / "b", epochs=0, shared_layers=1).model
    texts = inputs(made.folder)
    for model in (whole, one, one.train()):
        model.config.output_hidden_states = True
        assert len(model(**texts).hidden_states) == 3
        assert model(**texts, output_hidden_states=False).hidden_states is None
    several = plait.load(made.folder)
    several.config.output_hidden_states = True
    with pytest.raises(ValueError, match="output_hidden_states: the members have layers of their own"):
        several(**texts)


def test_where_nothing_is_trained_nothing_is_cut(made: SavedEnsemble, place: Path, tmp_path: Path) -> None:
    assert "max_length" not in made.report["recipe"]
    assert made.tokenizer.model_max_length == AutoTokenizer.from_pretrained(place / "seed1").model_max_length
    again = plait.run({**made.report["recipe"], "output": str(tmp_path / "again")})
    assert "max_length" not in again.report["recipe"]


def test_what_is_trained_says_how_long_its_texts_were(trained: SavedEnsemble, tmp_path: Path) -> None:
    plait.export(trained, tmp_path / "plain")
    for folder in (trained.folder, tmp_path / "plain"):
        assert AutoTokenizer.from_pretrained(folder).model_max_length == QUICK["max_length"]
    table = {"text": ["the film was good and " * 8, "a book"], "label": ["good", "bad"]}
    default, long = plait.evaluate(trained, table), plait.evaluate(trained, table, max_length=64)
    assert default == plait.evaluate(trained, table, max_length=QUICK["max_length"])
    assert default.tasks["model"].metrics["nll"] != long.tasks["model"].metrics["nll"]
    plain = plait.evaluate(tmp_path / "plain", table).tasks["model"].metrics
    assert plain["accuracy"] == default.tasks["model"].metrics["accuracy"]


NULLS = [
    ("perturbation", {"name": "gaussian", "strength": None}, "strength is None; expected a number above 0"),
    (
        "perturbation",
        {"name": "adversarial", "steps": None},
        "steps is None; expected a whole number above 0",
    ),
    ("perturbation", {"name": "word_dropout", "rate": None}, "rate is None; expected a number above 0"),
    ("consistency", {"name": "ensemble", "detach": "false"}, "detach is 'false'; expected true or false"),
    ("consistency", {"name": "pairwise", "detach": None}, "detach is None; expected true or false"),
    ("method", {"name": "one", "temperature": True}, "temperature is True; expected a number above 0"),
]


@pytest.mark.parametrize(("field", "value", "said"), NULLS, ids=[said for _, _, said in NULLS])
def test_options_of_the_wrong_kind(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: object, said: str
) -> None:
    told = {"combine": "ensemble", "base": str(place / "base"), "data": str(place / "train.jsonl"), **QUICK}
    (tmp_path / "r.yaml").write_text(json.dumps({**told, field: value, "output": str(tmp_path / "e")}))
    for name in ("check", "run"):
        assert command(name, tmp_path / "r.yaml") == 2
        assert said in capsys.readouterr().err
    plan(
        EnsembleRecipe.model_validate(
            {**told, "output": "e", "perturbation": {"name": "dropout", "rate": None}}
        )
    )


def test_every_from_counts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds, rest = [place / f"seed{n}" for n in (1, 2, 3)], ("-o", "e", "--epochs", 0, "--dry-run", "--json")
    for given in (
        ("--from", *seeds),
        ("--from", seeds[0], "--from", seeds[1], seeds[2]),
        (f"--from={seeds[0]}", "--seed", 0, *seeds[1:]),
    ):
        assert command("ensemble", *given, *rest) == 0
        assert json.loads(capsys.readouterr().out)["from"] == [str(seed) for seed in seeds]
    assert command("ensemble", "-o", "e", place / "base", "--from", *seeds) == 2
    assert f"both a base ({place / 'base'}) and --from are given" in capsys.readouterr().err


def test_options_of_the_regulariser(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("ensemble", place / "base", "--data", place / "train.jsonl", "-o", "e", "--dry-run", "--json")
    for told, name in (((), "ensemble"), (("--consistency", "pairwise"), "pairwise")):
        assert command(*asked, *told, "--set", "consistency.detach=true", "--set", "rate=0.2") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["consistency"] == {"name": name, "detach": True}
        assert found["perturbation"] == {"name": "dropout", "rate": 0.2}


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_pairs_with_the_ensemble_held_still(problem: Any) -> None:
    logits = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits.requires_grad_()
    pairs, whole = pairwise(logits, problem, detach=True), ensemble(logits, problem, detach=True)
    torch.testing.assert_close(pairs, whole * 8 / 3)
    torch.testing.assert_close(pairs, pairwise(logits, problem))
    (held,), (free,) = (torch.autograd.grad(r, logits) for r in (pairs, pairwise(logits, problem)))
    assert not torch.allclose(held, free)
    torch.testing.assert_close(held, torch.autograd.grad(whole, logits)[0] * 8 / 3)


def test_models_without_dropout_are_put_together(place: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        model = tiny("bert", "sequence", seed=seed, labels=2)
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
        save(model, tmp_path / f"seed{seed}")
    asked: dict[str, Any] = {"sources": [tmp_path / "seed1", tmp_path / "seed2"], "out": tmp_path / "e"}
    with pytest.raises(RecipeError, match="this encoder drops nothing"):
        plait.ensemble(**asked, data=place / "train.jsonl", epochs=1)
    assert plait.ensemble(**asked, epochs=0).members == 2


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


def test_one_model_may_be_given_alone(place: Path, tmp_path: Path) -> None:
    for name, given in (("text", str(place / "seed1")), ("path", place / "seed1")):
        saved = plait.ensemble(sources=given, out=tmp_path / name, epochs=0)
        assert saved.report["recipe"]["sources"] == [str(place / "seed1")]


def test_strangers_among_separate_models(place: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = {**QUICK, "data": place / "train.jsonl", "method": "separate", "head": "tanh"}
    saved = plait.ensemble(place / "base", out=tmp_path / "e", **told)
    (saved.folder / "members" / ".DS_Store").touch()
    (saved.folder / "members" / "x").mkdir()
    assert [folder.name for folder in saved.folders] == ["0", "1"]
    assert saved.predict(["the film"])
    for folder, lacking in (("0", "lacks 0;"), ("1", "lacks 0, 1;")):
        (saved.folder / "members" / folder).rename(tmp_path / folder)
        with pytest.raises(SourceError, match=lacking):
            plait.load(saved.folder)


def test_one_member_stands_for_all(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = {**QUICK, "data": place / "train.jsonl"}
    for name, options in (
        ("tanh", {"head": "tanh"}),
        ("private", {"shared_layers": 1}),
        ("apart", {"method": "separate"}),
    ):
        caplog.clear()
        saved = plait.ensemble(place / "base", out=tmp_path / name, **told, **options)
        plait.export(saved, tmp_path / f"{name}-plain")
        assert "member 0 of 2 is exported alone" in caplog.text
        assert "on the validation data, all together" in caplog.text
        plait.export(saved, tmp_path / f"{name}-0", member=0)
        alone, first = weights(tmp_path / f"{name}-plain"), weights(tmp_path / f"{name}-0")
        assert alone.keys() == first.keys()
        assert all(torch.equal(alone[key], first[key]) for key in alone)


def test_heads_that_cannot_leave(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tiny("distilbert", "body"), tmp_path / "base")
    told: dict[str, Any] = {"data": str(place / "train.jsonl"), "output": "e", "head": "tanh"}
    plan(EnsembleRecipe.model_validate({**told, "base": str(place / "base")}))
    assert "cannot be exported" not in caplog.text
    plan(EnsembleRecipe.model_validate({**told, "base": str(tmp_path / "base")}))
    assert "cannot be exported, neither whole nor one member: classifiers of type distilbert" in caplog.text


def test_shared_is_alpha_0(place: Path) -> None:
    told = {
        "base": str(place / "base"),
        "data": str(place / "train.jsonl"),
        "output": "e",
        "method": "shared",
    }
    assert plan(EnsembleRecipe.model_validate({**told, "alpha": 0.0})).describe()["alpha"] is None
    with pytest.raises(RecipeError, match="method shared does not use alpha"):
        plan(EnsembleRecipe.model_validate({**told, "alpha": 0.5}))


def test_the_card_of_passes_with_dropout(place: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = {**QUICK, "data": place / "train.jsonl", "method": "mc-dropout"}
    card = (plait.ensemble(place / "base", out=tmp_path / "e", **told).folder / "README.md").read_text()
    assert "The members are 2 passes with dropout" in card
    assert "asked 2 times with dropout" in card
    assert "mean of the members" not in card
    assert "member_logits" not in card


def test_folders_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, width in (("run1", 24), ("run2", 32)):
        save(tiny("bert", "sequence", intermediate_size=width), tmp_path / run / "final")
    first, second = tmp_path / "run1" / "final", tmp_path / "run2" / "final"
    assert command("ensemble", "--from", first, second, "--epochs", 0, "-o", tmp_path / "e", "--dry-run") == 2
    assert f"{first}: 24, {second}: 32" in capsys.readouterr().err
    folder = tmp_path / "run3" / "final"
    model = tiny("bert", "sequence")
    model.resize_token_embeddings(model.config.vocab_size + 3)
    save(model, folder)
    save(tiny("bert", "sequence", seed=1), second)
    assert (
        command("ensemble", "--from", folder, second, "--epochs", 0, "-o", tmp_path / "e", "--dry-run") == 2
    )
    error = capsys.readouterr().err
    assert f"({folder}: [" in error
    assert f"{second}: [" in error


def test_what_an_interrupted_command_says() -> None:
    assert "the same command with --resume goes on" in interruption(["ensemble", "base"])
    assert "resume" not in interruption(["export", "ens"])


def test_what_nothing_weighs_is_refused(place: Path, tmp_path: Path) -> None:
    told = {"base": str(place / "base"), "data": str(place / "train.jsonl"), "output": str(tmp_path / "ens")}
    for given, said in (
        ({"consistency": "none", "alpha": 5}, "alpha is 5 and consistency none"),
        ({"method": "separate", "strength": 0.1}, "strength is 0.1, and method separate trains without"),
        ({"perturbation": "none", "strength": 0.1}, "strength is 0.1, and perturbation none goes without"),
    ):
        with pytest.raises(RecipeError, match=said):
            plan(EnsembleRecipe.model_validate({**told, **given}))
    assert plan(EnsembleRecipe.model_validate({**told, "consistency": "none", "alpha": 0})).choice.alpha == 0


def test_nothing_trained_costs_nothing(made: SavedEnsemble) -> None:
    costs = made.report["forward_equivalents"]
    assert costs["training"] == costs["training_step"] == 0 < costs["prediction"]


def test_passes_with_dropout_cannot_be_exported(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: dict[str, Any] = {**QUICK, "data": place / "train.jsonl", "method": "mc-dropout", "members": 3}
    saved = plait.ensemble(place / "base", out=tmp_path / "ens", **told)
    with pytest.raises(RecipeError, match=r"one model whose members are passes with dropout: leave it out"):
        plait.export(saved, tmp_path / "two", member=2)
    caplog.clear()
    plait.export(saved, tmp_path / "plain")
    assert "the one model is exported" in caplog.text
    assert "its 3 passes" in caplog.text
