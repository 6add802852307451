"""What a review of the amalgamation found: each of these was wrong once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

import plait
from plait.amalgamation import distillation as room
from plait.amalgamation.label_space import disagreement, union
from plait.encoders.replay import read_by_head
from plait.errors import PlaitError, RecipeError, SourceError
from tests.models import save, texts, tiny, tiny_tokenizer
from tests.stopping import stopped_at

Paths = dict[str, str]
QUICK: dict[str, Any] = {"epochs": 1, "max_length": 32}
NAMES = {"news": ("World", "Business"), "sports": ("Sports", "Tech")}


def named(model: Any, names: tuple[str, ...]) -> Any:
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: at for at, name in enumerate(names)}
    return model


def decoder(seed: int, names: tuple[str, ...], *, padding: int | None = 0) -> Any:
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tiny_tokenizer("bert")), **size, num_labels=2, pad_token_id=padding)
    return named(LlamaForSequenceClassification(config), names)


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reviewed")
    for seed, (name, labels) in enumerate(NAMES.items(), 1):
        save(named(tiny("bert", "sequence", seed=seed, labels=2), labels), folder / name)
        saved(decoder(seed, labels), folder / f"{name}-decoder")
    saved(decoder(3, NAMES["news"], padding=None), folder / "endless")
    save(tiny("bert", "body"), folder / "base")
    return folder


@pytest.fixture
def teachers(place: Path) -> Paths:
    return {name: str(place / name) for name in NAMES}


def test_a_run_with_other_teachers_does_not_go_on(place: Path, teachers: Paths, tmp_path: Path) -> None:
    told: dict[str, Any] = {"texts": texts(40), "student": place / "base", **QUICK, "epochs": 2}
    with stopped_at(room, "agreement", 2):
        plait.amalgamate(teachers, out=tmp_path / "s", **told)
    again = {"out": tmp_path / "s", "resume": True, **told}
    for others in (dict(reversed(teachers.items())), {"news": teachers["news"]}):
        with pytest.raises(PlaitError, match="left by another run"):
            plait.amalgamate(others, **again)
    assert plait.amalgamate(teachers, **again).labels == ("World", "Business", "Sports", "Tech")


@pytest.mark.parametrize("objective", ["muka", "cfl", "dfa"])
def test_decoders_teach_and_learn(place: Path, tmp_path: Path, objective: str) -> None:
    teachers = {name: str(place / f"{name}-decoder") for name in NAMES}
    told: dict[str, Any] = {"texts": texts(40), "student": "news", "objective": objective, **QUICK}
    student = plait.amalgamate(teachers, out=tmp_path / "s", **told)
    from plait.teachers import open_store

    if objective != "dfa":
        features = open_store(tmp_path / "s.posteriors").posterior("news").features
        assert features is not None
        assert (
            float(features.float().std(0).mean()) > 1e-3
        )  # not those of the first token, equal for all texts
    assert student.report["data"]["texts"] == 40


def test_a_head_reads_the_last_token_of_a_text() -> None:
    values = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert read_by_head(values, mask).tolist() == [values[0, 1].tolist(), values[1, 3].tolist()]
    assert torch.equal(read_by_head(values[:, 0], mask), values[:, 0])


def test_a_decoder_without_padding_is_refused(place: Path, teachers: Paths, tmp_path: Path) -> None:
    told: dict[str, Any] = {"texts": texts(20), "out": tmp_path / "s", **QUICK}
    with pytest.raises(SourceError, match="endless: its configuration has no pad_token_id"):
        plait.amalgamate({**teachers, "endless": str(place / "endless")}, student=place / "base", **told)
    with pytest.raises(SourceError, match=r"student .*endless: its configuration has no pad_token_id"):
        plait.amalgamate(teachers, student=place / "endless", **told)


@pytest.mark.parametrize("lost", ["news", "sports"])
def test_a_lost_shard_is_scored_again_by_all_whose_passes_are_gone(
    teachers: Paths, tmp_path: Path, lost: str
) -> None:
    told: dict[str, Any] = {"texts": texts(40), "out": tmp_path / "p", "passes": 8, "stop": "likely"}
    before = plait.posteriors(teachers, **told).posterior(lost)
    (file,) = (tmp_path / "p" / "teachers" / lost).glob("*.safetensors")
    file.unlink()
    after = plait.posteriors(teachers, **told).posterior(lost)
    assert torch.equal(before.mean, after.mean)
    assert not list((tmp_path / "p").rglob("*rounds*"))


def test_labels_of_texts_are_matched_as_all_others(
    place: Path, teachers: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"text": texts(6), "topic": ["world", "Sports", None, "TECH", "Cooking", "Business"]}
    told: dict[str, Any] = {"student": place / "base", **QUICK}
    student = plait.amalgamate(teachers, texts=rows, label="topic", out=tmp_path / "s", **told)
    assert student.report["who_taught_what"]["routing"]["labelled"] == 4
    assert "1 texts have labels that no teacher knows (Cooking)" in caplog.text
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "the film", "topic": "world"}\n{"text": "a book", "topic": "Tech"}\n')
    oracle = plait.amalgamate(teachers, texts=file, label="topic", gate="oracle", out=tmp_path / "o", **told)
    assert oracle.report["who_taught_what"]["routing"]["accuracy"] == 1.0


def test_a_teacher_without_tokenizer_is_named_first(place: Path, teachers: Paths, tmp_path: Path) -> None:
    shutil.copytree(place / "news", tmp_path / "mute", ignore=shutil.ignore_patterns("*token*", "vocab*"))
    told: dict[str, Any] = {"texts": texts(20), "student": place / "base", **QUICK}
    with pytest.raises(SourceError, match="mute: no tokenizer"):
        plait.amalgamate({**teachers, "mute": str(tmp_path / "mute")}, out=tmp_path / "s", **told)
    assert not (tmp_path / "s.posteriors").exists()


def test_a_subset_in_a_store_serves_other_seeds(place: Path, teachers: Paths, tmp_path: Path) -> None:
    told: dict[str, Any] = {"texts": texts(40), "student": place / "base", "store": tmp_path / "p", **QUICK}
    plait.amalgamate(teachers, out=tmp_path / "a", limit=20, **told)
    other = plait.amalgamate(teachers, out=tmp_path / "b", limit=20, seed=1, **told)
    assert other.report["forward_equivalents"]["teachers_now"] == 0
    with pytest.raises(PlaitError, match="found 20 of"):
        plait.amalgamate(teachers, out=tmp_path / "c", **{**told, "texts": texts(40, seed=5)})


def unsure(count: int = 400) -> torch.Tensor:
    """A teacher that is right about its labels and gives them little more than one half."""
    kinds = torch.arange(count) % 2
    noise = torch.rand(count, generator=torch.Generator().manual_seed(0)) * 0.02
    first = torch.where(kinds == 0, 0.53 + noise, 0.45 - noise)
    return torch.stack([first, 1 - first], 1)


def test_equal_teachers_agree_however_unsure() -> None:
    space = union({"a": ["x", "y"], "b": ["x", "y"]})
    assert disagreement([unsure(), unsure()], space, space.teachers) == []


def test_advice_names_a_renamed_label_as_its_teacher_does() -> None:
    space = union({"a": ["x", "y"], "b": ["z", "y"]}, {"b.z": "x"})
    sure = torch.tensor([[0.99, 0.01], [0.01, 0.99]]).repeat(100, 1)
    found = disagreement([sure, sure.flip(1)], space, space.teachers)
    assert [text.rpartition("--rename ")[2] for text in found] == ["'b.z=NAME'", "'b.y=NAME'"]


def test_a_gate_that_sees_no_difference_is_told(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twice = {"a": str(place / "news"), "b": str(place / "news")}
    plait.amalgamate(twice, texts=texts(20), student=place / "base", out=tmp_path / "s", **QUICK)
    assert "finds no difference between the best teachers on 20 of 20 texts" in caplog.text


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


def test_what_speaks_of_passes_that_nobody_makes_is_said(
    place: Path, teachers: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: dict[str, Any] = {"texts": texts(20), "student": place / "base", **QUICK}
    plait.amalgamate(teachers, out=tmp_path / "s", last_layers=1, **told)
    assert "give --passes" in caplog.text
    with pytest.raises(RecipeError, match="needs Monte Carlo passes"):
        plait.amalgamate(teachers, out=tmp_path / "t", gate="muka", passes=0, **told)


@pytest.mark.parametrize(("epochs", "size", "said"), [(1, 16, True), (3, 1, False)])
def test_too_few_steps_are_said(
    place: Path,
    teachers: Paths,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    epochs: int,
    size: int,
    said: bool,
) -> None:
    told: dict[str, Any] = {
        "texts": texts(80),
        "student": place / "base",
        "objective": "vkd",
        "held_back": 0.1,
    }
    plait.amalgamate(teachers, out=tmp_path / "s", epochs=epochs, batch_size=size, max_length=8, **told)
    assert ("the student learns in 5 steps only" in caplog.text) is said
    assert ("steps only" in caplog.text) is said
