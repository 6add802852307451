"""Stores of teachers' outputs: whom and what they serve, what is scored again, and how runs go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel

import plait
from plait.amalgamation import distillation as room
from plait.cli import interruption
from plait.errors import PlaitError
from plait.teachers import open_store
from plait.teachers.mc_dropout import Scorer
from plait.teachers.record import read_record
from plait.teachers.scoring import SHARD
from tests.models import texts, tiny, tiny_tokenizer
from tests.stopping import stopped_at
from tests.two_teachers import NAMES, QUICK, Paths, named


def test_shards_are_small_enough_to_resume_at(teachers: Paths, tmp_path: Path) -> None:
    store = plait.posteriors(teachers, texts=texts(SHARD + 3), out=tmp_path / "p", passes=0, max_length=8)
    assert store.shards == 2
    assert len(store.posterior("news").logits) == SHARD + 3


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


def test_a_subset_in_a_store_serves_other_seeds(place: Path, teachers: Paths, tmp_path: Path) -> None:
    told: dict[str, Any] = {"texts": texts(40), "student": place / "base", "store": tmp_path / "p", **QUICK}
    plait.amalgamate(teachers, out=tmp_path / "a", limit=20, **told)
    other = plait.amalgamate(teachers, out=tmp_path / "b", limit=20, seed=1, **told)
    assert other.report["forward_equivalents"]["teachers_now"] == 0
    with pytest.raises(PlaitError, match="found 20 of"):
        plait.amalgamate(teachers, out=tmp_path / "c", **{**told, "texts": texts(40, seed=5)})


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


def test_a_store_in_the_folder_one_is_in(
    teachers: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plait.posteriors(teachers, texts=texts(20), out=".", passes=0, limit=5).count == 5
    assert open_store(tmp_path).count == 5


def test_trying_dropout_costs_next_to_nothing(teachers: Paths, tmp_path: Path) -> None:
    rows, original = [], BertModel.forward

    def counted(self: Any, input_ids: Any = None, **options: Any) -> Any:
        rows.append(len(input_ids))
        return original(self, input_ids, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BertModel, "forward", counted)
        plait.posteriors(teachers, texts=texts(64), out=tmp_path / "p", passes=16)
    assert 2 * 17 * 64 < sum(rows) <= 2 * (17 * 64 + 2 * 10)


def test_an_interrupted_store_is_not_called_lost() -> None:
    assert interruption(["posteriors", "a=b"]) == (
        "interrupted; finished shards are kept, and the same command goes on from there"
    )


def test_a_run_with_other_teachers_does_not_go_on(place: Path, teachers: Paths, tmp_path: Path) -> None:
    told: dict[str, Any] = {"texts": texts(40), "student": place / "base", **QUICK, "epochs": 2}
    with stopped_at(room, "agreement", 2):
        plait.amalgamate(teachers, out=tmp_path / "s", **told)
    again = {"out": tmp_path / "s", "resume": True, **told}
    for others in (dict(reversed(teachers.items())), {"news": teachers["news"]}):
        with pytest.raises(PlaitError, match="left by another run"):
            plait.amalgamate(others, **again)
    assert plait.amalgamate(teachers, **again).labels == ("World", "Business", "Sports", "Tech")
