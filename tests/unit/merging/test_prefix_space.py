"""A tagger whose tokenizer puts a space before the first word, beside a classifier of the same base without one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import plait
from plait.checkpoints.checkpoint import open_checkpoint
from plait.errors import RecipeError
from tests.models import save, texts, tiny, tiny_tokenizer


def source(folder: Path, head: str, *, space: bool, seed: int = 1) -> str:
    """Returns the folder of a RoBERTa with a tokenizer of its own setting."""
    save(tiny("roberta", head, seed=seed, labels=2), folder)
    for file in folder.glob("*token*"):
        file.unlink()
    tiny_tokenizer("roberta", add_prefix_space=space).save_pretrained(folder)
    return str(folder)


def spaced(tokenizer: Any) -> bool:
    first: str = tokenizer.convert_ids_to_tokens(tokenizer("the")["input_ids"])[1]
    return first.startswith("Ġ")


@pytest.mark.parametrize("order", ["sr", "rs"])
def test_each_task_keeps_its_own(tmp_path: Path, order: str, caplog: pytest.LogCaptureFixture) -> None:
    made = {
        "s": source(tmp_path / "s", "sequence", space=False), "r": source(tmp_path / "r", "token", space=True, seed=2),
    }  # fmt: skip
    with caplog.at_level(logging.INFO, logger="plait"):
        merged = plait.merge({name: made[name] for name in order}, method="average", out=tmp_path / "m")
    assert f"task {order[1]} keeps the tokenizer of {order[1]} (add_prefix_space)" in caplog.text
    for task, expected in (("s", False), ("r", True)):
        plain = plait.export(merged, tmp_path / task / "plain", task=task)
        for place in (merged.path / "tasks" / task, plain):
            assert spaced(AutoTokenizer.from_pretrained(place)) is expected
            assert not any(file.is_symlink() for file in plain.iterdir())
    every = merged.predict(texts(6))
    assert list(every) == list(order)
    assert every == {task: merged.predict(texts(6), task=task) for task in order}
    said = plait.evaluate(merged, {"r": {"tokens": [text.split() for text in texts(6)], "tags": [
        [0] * len(text.split()) for text in texts(6)]}})  # fmt: skip
    assert said.to_dict()["tasks"]["r"]
    with pytest.raises(RecipeError):
        merged.tokenizer_of("t")


def test_predictions_are_those_of_the_exported_model(tmp_path: Path) -> None:
    made = {
        "s": source(tmp_path / "s", "sequence", space=False),
        "b": source(tmp_path / "b", "sequence", space=True, seed=2),
    }  # fmt: skip
    merged = plait.merge(made, method="average", out=tmp_path / "m")
    every = merged.predict(texts(4))
    for task in made:
        plain = open_checkpoint(plait.export(merged, tmp_path / f"plain-{task}", task=task))
        model, tokenizer = plain.model(), plain.tokenizer()
        for text, found in zip(texts(4), every[task], strict=True):
            expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
            assert list(found["scores"].values()) == pytest.approx(expected, abs=1e-5)


def test_sources_of_one_task_that_differ_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = {
        "a": source(tmp_path / "a", "token", space=True), "b": source(tmp_path / "b", "token", space=False),
    }  # fmt: skip
    plait.merge(made, method="average", tasks={"a": "t", "b": "t"}, out=tmp_path / "m")
    assert "a reads texts with add_prefix_space True, b with False" in caplog.text
