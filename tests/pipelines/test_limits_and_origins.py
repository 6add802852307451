"""Tokenizers without a length limit, and models that are named from another folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import plait
from plait.checkpoints.checkpoint import open_checkpoint
from plait.checkpoints.lineage import lineage
from plait.errors import PlaitError
from tests.models import save, texts, tiny

UNLIMITED = int(1e30)
"""As transformers writes it where nothing limits a tokenizer."""


def limited(folder: Path, length: int) -> Path:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": length}))
    return folder


def source(folder: Path, seed: int = 0) -> Path:
    return save(tiny("bert", "sequence", seed=seed, labels=2), folder)


def rows(count: int = 8) -> dict[str, list[object]]:
    return {"text": list(texts(count)), "label": [at % 2 for at in range(count)]}


def test_a_tokenizer_without_a_limit(tmp_path: Path) -> None:
    a, b = source(tmp_path / "a"), limited(source(tmp_path / "b", 1), UNLIMITED)
    merged = plait.merge({"a": str(a), "b": str(b)}, method="average", out=tmp_path / "m")
    # No limit of one source does not lift that of the others.
    assert merged.tokenizer.model_max_length == open_checkpoint(a).tokenizer().model_max_length
    plait.finetune(b, rows(), tmp_path / "t", epochs=1, max_length=16, checkpoints=False)
    assert open_checkpoint(tmp_path / "t").tokenizer().model_max_length <= 16


def test_a_recorded_base_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source(Path("base"))
    plait.finetune("base", rows(), "tuned", epochs=1, max_length=16, checkpoints=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_checkpoint("../tuned").recorded_base == str((tmp_path / "base").resolve())


def test_an_impossible_date_in_a_card_is_no_obstacle(tmp_path: Path) -> None:
    folder = source(tmp_path / "a")
    (folder / "README.md").write_text("---\ndate: 2024-02-30\nlicense: mit\n---\n")
    assert lineage("a", folder).get("license") in {"mit", None}
    plait.merge({"a": str(folder), "b": str(source(tmp_path / "b", 1))}, method="average", out=tmp_path / "m")


def test_other_label_names_are_another_job(tmp_path: Path) -> None:
    model = tiny("bert", "sequence", seed=0, labels=2)
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    place = {"a": str(save(model, tmp_path / "a")), "b": str(source(tmp_path / "b", 1))}
    plait.merge(place, method="average", out=tmp_path / "m")
    with pytest.raises(PlaitError):
        plait.merge(place, method="average", out=tmp_path / "m", resume=True, labels={"a": ["bad", "good"]})


def test_a_length_that_is_asked_for_holds_for_merges_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = {name: str(limited(source(tmp_path / name, at), 8)) for at, name in enumerate("ab")}
    merged = plait.merge(both, method="average", out=tmp_path / "m")
    data = {name: rows() for name in both}
    caplog.clear()
    plait.evaluate(merged, data, max_length=24)
    assert "is cut to" not in caplog.text
    assert merged.tokenizer.model_max_length == 8


def test_the_card_shows_a_pipeline_that_opens(tmp_path: Path) -> None:
    merged = plait.merge(
        {"a": str(source(tmp_path / "a")), "b": str(source(tmp_path / "b", 1))}, method="average", out=tmp_path / "m"
    )
    card = (merged.path / "README.md").read_text()
    assert 'pipeline("text-classification", model="m/tasks/a")' in card
