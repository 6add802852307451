"""What a store keeps beside what the teachers said: states of the base, moved words, responses of updates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint
from plait.data import open_texts
from plait.errors import DataError, SourceError
from plait.teachers import Settings, Store, score_texts
from plait.teachers.embedding_drift import check_kin, embedding_drift, words_of
from plait.teachers.extras import base_states
from plait.teachers.update_response import update_response
from tests.models import save, texts, tiny

TEXTS = texts(9)
LENGTH = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    save(tiny("bert", seed=1, labels=2), folder / "teacher")
    save(tiny("bert", "body"), folder / "base")
    save(tiny("bert", "body", base_seed=5), folder / "stranger")
    save(tiny("distilbert", "body"), folder / "other")
    return folder


def opened(place: Path, name: str) -> Checkpoint:
    return open_checkpoint(place / name, name=name)


@pytest.fixture
def store(place: Path, tmp_path: Path) -> Store:
    settings = Settings(passes=0, max_length=LENGTH)
    return score_texts(tmp_path / "store", open_texts(TEXTS), [opened(place, "teacher")], settings)


def by_hand(place: Path, name: str) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    checkpoint = opened(place, name)
    model, tokenizer = checkpoint.model().base_model.double(), checkpoint.tokenizer()
    inputs = [tokenizer(t, truncation=True, max_length=LENGTH, return_tensors="pt") for t in TEXTS]
    return model, [dict(one) for one in inputs]


def test_states_of_the_base_are_means_over_tokens(place: Path, store: Store) -> None:
    found = base_states(store, open_texts(TEXTS), opened(place, "base"), LENGTH, batch_size=4)
    model, inputs = by_hand(place, "base")
    with torch.no_grad():
        wanted = torch.stack([model(**one).last_hidden_state[0].mean(0) for one in inputs])
    torch.testing.assert_close(found.values.double(), wanted, rtol=2e-3, atol=2e-3)
    assert found.read == len(TEXTS)


def test_responses_are_those_of_single_texts_and_tokens(place: Path, store: Store) -> None:
    found = update_response(
        store, open_texts(TEXTS), opened(place, "teacher"), opened(place, "base"), LENGTH, batch_size=4
    )
    model, inputs = by_hand(place, "base")
    tuned = dict(by_hand(place, "teacher")[0].named_modules())
    linears = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear) and "pooler" not in path}
    read: dict[str, torch.Tensor] = {}
    for path, module in linears.items():
        module.register_forward_pre_hook(lambda _, given, path=path: read.update({path: given[0][0]}))
    rows = []
    with torch.no_grad():
        for one in inputs:
            model(**one)
            row = []
            for path, module in linears.items():
                logs = []
                for token in read[path]:
                    changed = (tuned[path].weight - module.weight) @ token
                    before = module.weight @ token
                    logs.append(math.log(float(changed @ changed) / float(before @ before)))
                row.append(sum(logs) / len(logs))
            rows.append(row)
    torch.testing.assert_close(found.values.double(), torch.tensor(rows).double(), rtol=1e-3, atol=1e-3)


def test_what_is_kept_is_not_computed_again(
    place: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: tuple[Any, ...] = (opened(place, "teacher"), opened(place, "base"), LENGTH)
    states = base_states(store, open_texts(TEXTS), told[1], LENGTH)
    responses = update_response(store, open_texts(TEXTS), *told)
    monkeypatch.setattr(Checkpoint, "model", lambda *_, **__: pytest.fail("a model was loaded"))
    again = base_states(store, open_texts(TEXTS), told[1], LENGTH)
    assert again.read == 0
    assert torch.equal(again.values, states.values)
    assert torch.equal(update_response(store, open_texts(TEXTS), *told).values, responses.values)
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        base_states(store, open_texts(TEXTS), told[1], LENGTH - 1)


def test_texts_that_changed_are_refused(place: Path, store: Store) -> None:
    with pytest.raises(DataError, match="changed while it was read"):
        base_states(store, open_texts([*TEXTS[1:], "the end"]), opened(place, "base"), LENGTH)


def moved(place: Path, tmp_path: Path, rows: dict[int, float], decay: float) -> Checkpoint:
    """Returns a teacher whose embeddings are the base's after weight decay, with some rows moved by a distance."""
    model = tiny("bert", labels=2)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.copy_(opened(place, "base").model().get_input_embeddings().weight * decay)
        for row, distance in rows.items():
            step = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(row))
            table[row] += distance * step / step.norm()
    save(model, tmp_path / "moved")
    return open_checkpoint(tmp_path / "moved", name="moved")


def test_words_that_moved_are_told_from_weight_decay(place: Path, tmp_path: Path) -> None:
    teacher = moved(place, tmp_path, {7: 0.5, 9: 0.25}, decay=0.98)
    found = embedding_drift(teacher, opened(place, "base"))
    assert float(found[7]) == pytest.approx(0.5, abs=1e-5)
    assert float(found[9]) == pytest.approx(0.25, abs=1e-5)
    found[[7, 9]] = 0
    assert float(found.max()) < 1e-5


def test_words_are_those_of_the_teachers_tokenizer_without_special_ones(place: Path) -> None:
    teacher = opened(place, "teacher")
    words = words_of(open_texts(TEXTS), teacher, LENGTH)
    tokenizer = teacher.tokenizer()
    for at, text in enumerate(TEXTS):
        wanted = tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"][1:-1]
        assert words.tokens[words.starts[at] : words.starts[at + 1]].tolist() == wanted


def test_strangers_are_no_base(place: Path, store: Store, tmp_path: Path) -> None:
    teacher = opened(place, "teacher")
    with pytest.raises(SourceError, match=r"teacher: was not fine-tuned from .*stranger; name its base with --base"):
        check_kin(teacher, opened(place, "stranger"))
    with pytest.raises(SourceError, match=r"teacher: is of type bert, .* of type distilbert: not its base"):
        check_kin(teacher, opened(place, "other"))
    still = moved(place, tmp_path, {}, decay=1.0)
    with pytest.raises(SourceError, match=r"moved: its embeddings are those of .*base, they were not trained"):
        embedding_drift(still, opened(place, "base"))
    with pytest.raises(SourceError, match=r"was not fine-tuned from .*stranger"):
        update_response(store, open_texts(TEXTS), teacher, opened(place, "stranger"), LENGTH)
