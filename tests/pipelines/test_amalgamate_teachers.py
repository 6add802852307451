"""Teachers and students: who can be one, who is refused before any work, and how a student is opened."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import plait
from plait.errors import SourceError
from tests.models import save, texts, tiny, tiny_tokenizer
from tests.two_teachers import NAMES, QUICK, Paths, named


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    return str(folder)


def decoder(seed: int, names: tuple[str, ...], *, padding: int | None = 0) -> Any:
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tiny_tokenizer("bert")), **size, num_labels=2, pad_token_id=padding)
    return named(LlamaForSequenceClassification(config), names)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, labels) in enumerate(NAMES.items(), 1):
        save(named(tiny("bert", "sequence", seed=seed, labels=2), labels), folder / name)
        saved(decoder(seed, labels), folder / f"{name}-decoder")
    saved(decoder(3, NAMES["news"], padding=None), folder / "endless")
    save(tiny("bert", "body"), folder / "base")
    return folder


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


def test_a_decoder_without_padding_is_refused(place: Path, teachers: Paths, tmp_path: Path) -> None:
    told: dict[str, Any] = {"texts": texts(20), "out": tmp_path / "s", **QUICK}
    with pytest.raises(SourceError, match="endless: its configuration has no pad_token_id"):
        plait.amalgamate({**teachers, "endless": str(place / "endless")}, student=place / "base", **told)
    with pytest.raises(SourceError, match=r"student .*endless: its configuration has no pad_token_id"):
        plait.amalgamate(teachers, student=place / "endless", **told)


def test_a_teacher_without_tokenizer_is_named_first(place: Path, teachers: Paths, tmp_path: Path) -> None:
    shutil.copytree(place / "news", tmp_path / "mute", ignore=shutil.ignore_patterns("*token*", "vocab*"))
    told: dict[str, Any] = {"texts": texts(20), "student": place / "base", **QUICK}
    with pytest.raises(SourceError, match="mute: no tokenizer"):
        plait.amalgamate({**teachers, "mute": str(tmp_path / "mute")}, out=tmp_path / "s", **told)
    assert not (tmp_path / "s.posteriors").exists()


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


def test_a_student_is_loaded_as_one(place: Path, teachers: Paths, tmp_path: Path) -> None:
    made = plait.amalgamate(
        teachers, texts=texts(30), student=place / "base", out=tmp_path / "student", **QUICK
    )
    found = plait.load(tmp_path / "student")
    assert found.labels == made.labels == ("World", "Business", "Sports", "Tech")
    assert found.predict(["A text."]) == made.predict(["A text."])
    with pytest.raises(SourceError, match="is not a merged checkpoint but a student"):
        plait.export(tmp_path / "student", tmp_path / "plain")
