"""Options of an ensemble: how they are written, how they are resolved, and which a plan refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.ensembles.plan import plan
from plait.errors import DataError, PlaitError, RecipeError, SourceError
from plait.recipe import EnsembleRecipe
from tests.ensembles import QUICK, command, prepare
from tests.models import save, tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ensemble"))


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


@pytest.mark.parametrize(
    "options", [{"consistency": "none"}, {"method": "one"}, {"method": "codistillation"}, {"alpha": 0.0}]
)
def test_a_resolved_recipe_runs_again(place: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    told = {"base": str(place / "base"), "data": str(place / "train.jsonl"), "output": str(tmp_path / "e")}
    first = plan(EnsembleRecipe.model_validate({**told, **QUICK, **options}))
    again = plan(EnsembleRecipe.model_validate(first.resolved().model_dump(mode="json", exclude_none=True)))
    assert again.resolved() == first.resolved()
    assert again.describe() == first.describe()


BAD: list[tuple[type[PlaitError], str, dict[str, Any]]] = [
    (RecipeError, "batch_size is 8; expected a multiple of 3", {"accumulate": 3}),
    (RecipeError, "report_to is 'foo': foo is not supported", {"report_to": "foo"}),
    (
        RecipeError,
        "report_to is 'neptune', which is not installed: install it, or choose ",
        {"report_to": "neptune"},
    ),
    (RecipeError, "seed is 4294967296; expected 0 to 4294967295", {"seed": 2**32}),
    (RecipeError, "that of the last model 4294967296", {"seed": 2**32 - 1, "method": "separate"}),
    (DataError, "all labels are 'same'; a classifier needs two or more", {"data": "one.csv"}),
]


@pytest.mark.parametrize(("error", "match", "changes"), BAD, ids=[match for _, match, _ in BAD])
def test_a_plan_refuses_what_a_run_would(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    error: type[PlaitError], match: str, changes: dict[str, Any],
) -> None:  # fmt: skip
    (tmp_path / "one.csv").write_text("text,label\nthe film,same\na book,same\n")
    told = {"base": str(place / "base"), "data": str(place / "train.jsonl"), **QUICK, "combine": "ensemble"}
    told |= {"output": str(tmp_path / "e"), **changes}
    told["data"] = str(tmp_path / told["data"])
    (tmp_path / "recipe.yaml").write_text(json.dumps(told))
    assert command("check", tmp_path / "recipe.yaml") == 2
    assert match in capsys.readouterr().err
    with pytest.raises(error, match=match):
        plait.run(tmp_path / "recipe.yaml")
    assert not (tmp_path / "e").exists()


def tokens(folder: Path, extra: int) -> Path:
    """A base with a tokenizer of so many more tokens; without one for 0."""
    model = tiny("bert", "body")
    if not extra:
        model.save_pretrained(folder)
        return folder
    save(model, folder)
    tokenizer = tiny_tokenizer("bert")
    tokenizer.add_tokens([f"extra{number}" for number in range(extra)])
    tokenizer.save_pretrained(folder)
    return folder


def test_a_plan_refuses_tokenizers_that_a_run_would(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(tiny_tokenizer("bert"))
    mute = shutil.copytree(place / "seed1", tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    asked = (
        (
            (tokens(tmp_path / "large", 2),),
            f"large has ids up to {count + 1}, its embeddings only {count} rows",
        ),
        ((tokens(tmp_path / "none", 0),), "none: no tokenizer in "),
        (("--from", mute), "mute: no tokenizer in "),
    )
    for start, said in asked:
        told = ("ensemble", *start, "--data", place / "train.jsonl", "-o", tmp_path / "e", "--dry-run")
        assert command(*told) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SourceError, match="its embeddings only"):
        plait.ensemble(tmp_path / "large", data=place / "train.jsonl", out=tmp_path / "e", **QUICK)


def test_trackers_and_seeds_of_a_fine_tuning(place: Path, tmp_path: Path) -> None:
    for option in ({"report_to": "foo"}, {"seed": 2**32}):
        with pytest.raises(RecipeError, match=rf"{next(iter(option))} is "):
            plait.finetune(place / "base", place / "train.jsonl", tmp_path / "out", **option)
