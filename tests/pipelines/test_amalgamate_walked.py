"""What a walk along the command line found in the amalgamation: each of these was wrong once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel, GPT2Config, GPT2ForSequenceClassification

import plait
from plait.amalgamation.choices import Choices
from plait.amalgamation.label_space import union
from plait.amalgamation.plan import plan
from plait.amalgamation.targets import soft_targets
from plait.cli import interruption, invoke
from plait.data import open_texts
from plait.errors import PlaitError, RecipeError, SourceError
from plait.recipe.arguments import amalgamation_recipe
from plait.recipe.parsing import parse_recipe
from plait.teachers import Settings, open_store, score_texts
from plait.teachers.mc_dropout import Scorer
from plait.teachers.record import read_record
from plait.teachers.scoring import SHARD
from tests.models import save, texts, tiny, tiny_tokenizer

Paths = dict[str, str]
QUICK: dict[str, Any] = {"epochs": 1, "max_length": 32}
NAMES = {"news": ("World", "Business"), "sports": ("Sports", "Tech")}


def named(model: Any, names: tuple[str, ...]) -> Any:
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: at for at, name in enumerate(names)}
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walked")
    for seed, (name, labels) in enumerate(NAMES.items(), 1):
        save(named(tiny("bert", "sequence", seed=seed, labels=2), labels), folder / name)
    save(tiny("bert", "body"), folder / "base")
    return folder


@pytest.fixture
def teachers(place: Path) -> Paths:
    return {name: str(place / name) for name in NAMES}


def test_ids_beyond_the_embeddings_are_said_before_any_work(
    place: Path, teachers: Paths, tmp_path: Path
) -> None:
    model = named(tiny("bert", "sequence", seed=5, labels=2), ("A", "B"))
    model.save_pretrained(tmp_path / "wide")
    tokenizer = tiny_tokenizer("bert")
    tokenizer.add_tokens([f"unheard{at}" for at in range(500)])
    tokenizer.save_pretrained(tmp_path / "wide")
    three = {**teachers, "c": str(tmp_path / "wide")}
    said = r"tokenizer of c has ids up to \d+, its embeddings only"
    with pytest.raises(SourceError, match=said):
        plait.posteriors(three, texts=texts(5), out=tmp_path / "p")
    with pytest.raises(SourceError, match=said):
        plait.amalgamate(three, texts=texts(5), student=place / "base", out=tmp_path / "s", **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wide"]


def test_a_student_that_cannot_start_is_said_before_any_work(teachers: Paths, tmp_path: Path) -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(tiny_tokenizer("bert")))
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "endless")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "endless")
    with pytest.raises(SourceError, match="endless: its configuration has no pad_token_id"):
        plait.amalgamate(teachers, texts=texts(20), student=tmp_path / "endless", out=tmp_path / "s", **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["endless"]


def test_shards_are_small_enough_to_resume_at(teachers: Paths, tmp_path: Path) -> None:
    store = plait.posteriors(teachers, texts=texts(SHARD + 3), out=tmp_path / "p", passes=0, max_length=8)
    assert store.shards == 2
    assert len(store.posterior("news").logits) == SHARD + 3


def test_the_temperature_softens_teacher_and_student(teachers: Paths, tmp_path: Path) -> None:
    store = plait.posteriors(teachers, texts=texts(30), out=tmp_path / "p", passes=0)
    posteriors = [store.posterior(name) for name in NAMES]
    found = soft_targets(posteriors, union(NAMES), Choices(gate="energy", options={"temperature": 2.0}))
    chosen = [posteriors[at].logits[row].double() / 2 for row, at in enumerate(found.routing.choice.tolist())]
    expected = torch.stack([z.softmax(-1) for z in chosen]).max(-1).values
    assert torch.allclose(found.target.max(-1).values.double(), expected, atol=1e-6)


def test_a_store_of_other_texts_decides_nothing(place: Path, teachers: Paths, tmp_path: Path) -> None:
    out = tmp_path / "s"
    told: dict[str, Any] = {"student": place / "base", "gate": "muka", "epochs": 1}
    plait.amalgamate(teachers, texts=texts(20), out=out, passes=2, max_length=16, last_layers=1, **told)
    settings = read_record(tmp_path / "s.posteriors").settings
    assert (settings.passes, settings.max_length, settings.last_layers) == (2, 16, 1)
    plait.amalgamate(teachers, texts=texts(20, seed=9), out=out, overwrite=True, **told)
    settings = read_record(tmp_path / "s.posteriors").settings
    assert (settings.passes, settings.max_length, settings.last_layers) == (16, 128, None)


def test_one_teacher_is_heard_once_whatever_it_is_called(
    place: Path, teachers: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {"texts": texts(20), "passes": 2}
    first = plait.posteriors(teachers, out=tmp_path / "p", **told)

    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("a teacher was asked again")

    monkeypatch.setattr(Scorer, "score", asked)
    renamed = {"n": teachers["news"], "s": teachers["sports"]}
    again = plait.posteriors(renamed, out=tmp_path / "p", **told)
    assert torch.equal(again.posterior("n").mean, first.posterior("news").mean)
    student = plait.amalgamate(
        {"one": teachers["news"], "two": teachers["sports"]},
        texts=texts(20), student=place / "base", store=tmp_path / "p", out=tmp_path / "s", epochs=1,
    )  # fmt: skip
    assert student.report["forward_equivalents"]["teachers_now"] == 0


def test_a_tokenizer_set_up_otherwise_is_another_teacher(teachers: Paths, tmp_path: Path) -> None:
    model = named(tiny("bert", "sequence", seed=1, labels=2), NAMES["news"])
    model.save_pretrained(tmp_path / "own")
    for length in (64, 6):
        tokenizer = tiny_tokenizer("bert")
        tokenizer.model_max_length = length
        tokenizer.save_pretrained(tmp_path / "own")
        told: dict[str, Any] = {"texts": texts(8), "out": tmp_path / "p", "passes": 0}
        if length == 64:
            plait.posteriors({"own": str(tmp_path / "own")}, **told)
        else:
            with pytest.raises(PlaitError, match="configuration or tokenizer of own"):
                plait.posteriors({"own": str(tmp_path / "own")}, **told)


def test_numbers_are_names_unless_they_are_places() -> None:
    assert union({"a": ("1", "2", "3"), "b": ("3", "4")}).names == ("1", "2", "3", "4")
    assert union({"a": ("0", "1"), "b": ("0", "1")}).names == ("a.0", "a.1", "b.0", "b.1")


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


def test_missing_texts_of_a_list_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    found = open_texts(["the film", None, "a book"])
    assert (found.count(), found.skipped) == (2, 1)
    assert "1 row of 3 without a text" in caplog.text


def test_columns_of_texts_in_memory(place: Path, teachers: Paths, tmp_path: Path) -> None:
    rows = {"left": texts(20), "right": texts(20, seed=4), "topic": ["World"] * 20}
    told: dict[str, Any] = {"texts": rows, "text": "left", "text_pair": "right"}
    store = plait.posteriors(teachers, out=tmp_path / "p", passes=0, **told)
    paired = score_texts(
        tmp_path / "q",
        open_texts({"text": rows["left"], "text_pair": rows["right"]}),  # type: ignore[arg-type]
        plan(
            amalgamation_recipe(
                teachers, out=tmp_path / "s", texts=None, student=place / "base", validation=None, options={}
            ),
            rows["left"],
        ).teachers,
        Settings(passes=0, keep="features", max_length=128),
    )
    assert torch.equal(store.posterior("news").logits, paired.posterior("news").logits)
    student = plait.amalgamate(
        teachers, out=tmp_path / "s", student=place / "base", label="topic", gate="oracle", **told, **QUICK
    )
    assert student.report["who_taught_what"]["routing"]["accuracy"] == 1


def test_places_in_the_union_are_said(
    place: Path, teachers: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"text": texts(20), "label": [at % 4 for at in range(20)]}
    student = plait.amalgamate(
        teachers,
        texts=rows,
        label="label",
        gate="oracle",
        student=place / "base",
        out=tmp_path / "s",
        **QUICK,
    )
    assert student.report["who_taught_what"]["routing"]["labelled"] == 20
    said = "labels are numbers, read as places in the union: 0 = World, 1 = Business, 2 = Sports, 3 = Tech"
    assert said in caplog.text
    caplog.clear()
    plait.evaluate(student, rows)
    assert said in caplog.text


def test_a_store_in_the_folder_one_is_in(
    teachers: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plait.posteriors(teachers, texts=texts(20), out=".", passes=0, limit=5).count == 5
    assert open_store(tmp_path).count == 5


def test_what_was_left_to_plait_is_written_down(place: Path, teachers: Paths, tmp_path: Path) -> None:
    store, told = tmp_path / "p", {"texts": texts(20), "student": place / "base"}
    plait.posteriors(teachers, texts=texts(20), out=store, passes=0, max_length=24)
    student = plait.amalgamate(teachers, out=tmp_path / "s", store=store, target="soft", epochs=1, **told)
    recipe = student.report["recipe"]
    assert recipe["max_length"] == 24
    assert recipe["temperature"] > 0


@pytest.mark.parametrize("count", [20, 200])
def test_too_few_texts_for_a_covariance_are_said(
    place: Path, teachers: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    caplog.set_level(logging.WARNING)
    recipe = amalgamation_recipe(
        teachers, out=tmp_path / "s", texts=None, student=place / "base", validation=None, options={}
    )
    plan(recipe, texts(count))
    assert ("estimates a covariance from 20 texts" in caplog.text) is (count == 20)


def test_trying_dropout_costs_next_to_nothing(teachers: Paths, tmp_path: Path) -> None:
    rows, original = [], BertModel.forward

    def counted(self: Any, input_ids: Any = None, **options: Any) -> Any:
        rows.append(len(input_ids))
        return original(self, input_ids, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BertModel, "forward", counted)
        plait.posteriors(teachers, texts=texts(64), out=tmp_path / "p", passes=16)
    assert 2 * 17 * 64 < sum(rows) <= 2 * (17 * 64 + 2 * 10)


def test_a_student_is_loaded_as_one(place: Path, teachers: Paths, tmp_path: Path) -> None:
    made = plait.amalgamate(
        teachers, texts=texts(30), student=place / "base", out=tmp_path / "student", **QUICK
    )
    found = plait.load(tmp_path / "student")
    assert found.labels == made.labels == ("World", "Business", "Sports", "Tech")
    assert found.predict(["A text."]) == made.predict(["A text."])
    with pytest.raises(SourceError, match="is not a merged checkpoint but a student"):
        plait.export(tmp_path / "student", tmp_path / "plain")


def test_the_columns_of_the_texts_are_said(
    teachers: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"premise": "One text.", "hypothesis": "Another."}\n' * 3)
    with caplog.at_level(logging.INFO, "plait"):
        plait.posteriors(teachers, texts=file, out=tmp_path / "store", passes=0)
    assert f"{file}: text=premise, text_pair=hypothesis" in caplog.text
    assert caplog.text.count("text=premise") == 1


def test_an_interrupted_store_is_not_called_lost() -> None:
    assert interruption(["posteriors", "a=b"]) == (
        "interrupted; finished shards are kept, and the same command goes on from there"
    )


def test_a_recipe_that_does_not_say_what_it_combines() -> None:
    told = {"sources": NAMES, "text": "t.txt", "student": "s", "output": "o"}
    with pytest.raises(
        RecipeError, match=r"combine is missing, so it is read as merge.*keys of amalgamate\)"
    ):
        parse_recipe(told)
    with pytest.raises(RecipeError, match="keys of ensemble"):
        parse_recipe({"base": "b", "from": ["a"], "alpha": 1, "output": "o"})
    with pytest.raises(RecipeError) as plain:
        parse_recipe({"sources": {"a": "x"}, "outptu": "o"})
    assert "combine is missing" not in str(plain.value)


def test_one_model_under_two_names(
    place: Path, teachers: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {**teachers, "again": teachers["news"]}
    plait.amalgamate(given, texts=texts(30), student=place / "base", out=tmp_path / "student", **QUICK)
    assert "teachers news, again have the same weights: leave all but one of them out" in caplog.text
