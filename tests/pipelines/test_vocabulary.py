"""Sources whose vocabularies have grown: rows matched by token, the tokens of all in the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

import plait
from plait.checkpoints.checkpoint import open_checkpoint
from plait.errors import MergeError
from tests.models import body, save, tiny, tiny_tokenizer

WORDS = "embeddings.word_embeddings.weight"


def grown(folder: Path, tokens: list[str], seed: int, *, multiple: int | None = None, family: str = "bert") -> Path:
    """Returns a source with tokens of its own, whose rows are drawn from a seed."""
    model, tokenizer = tiny(family, "sequence", seed=seed), tiny_tokenizer(family)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple, mean_resizing=False)
    known = len(tiny_tokenizer(family))
    words = model.get_input_embeddings().weight
    with torch.no_grad():
        words[known:] = torch.randn(words[known:].shape, generator=torch.Generator().manual_seed(seed))
    save(model, folder, tokenizer=False)
    tokenizer.save_pretrained(folder)
    return folder


def words_of(place: Path) -> torch.Tensor:
    return body(place)[WORDS]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {
        "a": grown(tmp_path / "a", ["[A]"], 1),
        "b": grown(tmp_path / "b", ["[B]", "[A]"], 2),
        "c": grown(tmp_path / "c", [], 3),
    }


def test_rows_are_matched_by_token_and_kept_from_whoever_has_them(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    merged = plait.merge(folders, method="average", out=tmp_path / "out")
    count = len(tiny_tokenizer("bert"))
    assert f"a: {count + 1}, b: {count + 2}, c: {count}" in caplog.text
    assert "the result has the tokens of all, [B] besides those of a" in caplog.text
    found, (a, b, c) = words_of(tmp_path / "out"), map(words_of, folders.values())
    torch.testing.assert_close(found[:count], (a[:count] + b[:count] + c) / 3)
    torch.testing.assert_close(found[count], (a[count] + b[count + 1]) / 2)  # [A], which two have
    torch.testing.assert_close(found[count + 1], b[count])  # [B], which one has
    tokenizer = merged.tokenizer
    assert tokenizer.convert_tokens_to_ids(["[A]", "[B]"]) == [count, count + 1]
    assert merged.task("b").config.vocab_size == count + 2
    assert len(merged.predict(["the film [B] is good [A]"])["b"]) == 1
    assert merged.manifest.sources["b"]["digest"] == open_checkpoint(folders["b"]).digest


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_a_base_without_the_tokens_lets_them_pass(method: str, folders: dict[str, Path], tmp_path: Path) -> None:
    base = save(tiny("bert", "body", drift=0.0), tmp_path / "base")
    options = {"scale": 1.0} if method == "task_arithmetic" else {"density": 1.0}
    plait.merge(folders, base=base, method=method, out=tmp_path / "out", **options)
    count = len(tiny_tokenizer("bert"))
    torch.testing.assert_close(words_of(tmp_path / "out")[count + 1], words_of(folders["b"])[count])
    assert words_of(tmp_path / "out").shape[0] == count + 2


def test_padding_is_no_difference(tmp_path: Path) -> None:
    plain, padded = grown(tmp_path / "plain", [], 1), grown(tmp_path / "padded", [], 2, multiple=64)
    plait.merge({"x": plain, "y": padded}, method="average", out=tmp_path / "out")
    found, count = words_of(tmp_path / "out"), len(tiny_tokenizer("bert"))
    torch.testing.assert_close(found[:count], (words_of(plain) + words_of(padded)[:count]) / 2)
    torch.testing.assert_close(found[count:], words_of(padded)[count:])
    base = save(tiny("bert", "body", drift=0.0), tmp_path / "base")
    plait.merge({"y": padded, "z": padded}, base=base, method="ties", out=tmp_path / "ties")


def test_statistics_read_texts_with_the_tokens_of_all(folders: dict[str, Path], tmp_path: Path) -> None:
    rows: dict[str, Any] = {"text": ["good [A] film", "bad [B] song", "the food"], "label": [0, 1, 2]}
    merged = plait.merge(folders, data=dict.fromkeys(folders, rows), method="regmean", out=tmp_path / "out")
    assert merged.task("a").config.vocab_size == len(tiny_tokenizer("bert")) + 2


def test_vocabularies_that_did_not_grow_from_one_are_refused(tmp_path: Path) -> None:
    first, other = grown(tmp_path / "a", [], 1), grown(tmp_path / "b", ["[B]"], 2)
    tokenizer = tiny_tokenizer("bert", do_lower_case=False)
    tokenizer.add_tokens(["[B]"])
    tokenizer.save_pretrained(other)
    with pytest.raises(MergeError, match=r"shape of embeddings.word_embeddings.weight differs .*tokenizers differ"):
        plait.merge({"a": first, "b": other}, method="average", out=tmp_path / "out")
