"""Work is done once: how often one job opens, parses, hashes and reads the same thing.

Before these limits a merge of two sources with data and evaluation parsed 14 configurations, loaded 7 tokenizers and
opened and hashed each source twice; an amalgamation by two teachers read its texts in 10 passes, parsed 14
configurations and loaded 7 tokenizers; a distilled ensemble read its texts in 6 passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

import plait
from plait.amalgamation import texts as corpus
from plait.checkpoints import checkpoint as opening
from plait.checkpoints.checkpoint import Checkpoint
from plait.data import reading as files
from plait.data import texts as reading
from plait.data.examples import Examples
from plait.teachers import scoring, store
from tests.ensembles import QUICK, prepare
from tests.models import texts

Paths = dict[str, str]
@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts by `what`, and for each place by `what place`."""
    found: Counter[str] = Counter()

    def counted(owner: Any, name: str, what: str, place: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        def called(*given: Any, **options: Any) -> Any:
            found[what] += 1
            found[f"{what} {place(*given)}"] += 1
            return original(*given, **options)

        monkeypatch.setattr(owner, name, called)

    counted(AutoConfig, "from_pretrained", "config", lambda folder: folder)
    counted(AutoTokenizer, "from_pretrained", "tokenizer", lambda folder: folder)
    counted(opening, "read_headers", "headers", lambda folder: folder)
    counted(Checkpoint, "_hash", "hash", lambda self, stored: self.folder / stored)
    counted(Examples, "hashes", "texts hashed", lambda self: self.source)
    counted(files, "source_of", "data", lambda data, *_: data)
    monkeypatch.setattr(reading, "source_of", partial(source_counted, reading.source_of, found))
    for room in (corpus, store, scoring):
        counted(room, "read_record", "store", lambda folder: folder)
    return found


def source_counted(source_of: Callable[..., Any], found: Counter[str], data: Any, *given: Any) -> Any:
    """Returns where rows come from; each pass over them is counted."""
    source = source_of(data, *given)

    def tables(wanted: Any) -> Any:
        found[f"pass {data if isinstance(data, str | Path) else 'in memory'}"] += 1
        return source.tables(wanted)

    return replace(source, tables=tables)


def most(counts: Counter[str], what: str) -> int:
    return max(n for name, n in counts.items() if name.startswith(f"{what} "))


def test_a_merge_opens_parses_and_hashes_each_source_once(
    sources: Paths, data: Paths, tmp_path: Path, counts: Counter[str]
) -> None:
    two = {name: sources[name] for name in ("mood", "type")}
    rows = {name: data[name] for name in two}
    plait.merge(two, data=rows, evaluate=rows, method="fisher", out=tmp_path / "m")
    for name, folder in two.items():
        assert [counts[f"{what} {folder}"] for what in ("config", "tokenizer", "headers")] == [1, 1, 1]
        assert counts[f"data {rows[name]}"] == 1
    assert most(counts, "hash") == 1
    # Two heads are completed with their configurations; then the result is opened for its scores, with all three.
    assert (counts["config"], counts["tokenizer"], counts["headers"]) == (7, 3, 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("once"))
    (folder / "texts.txt").write_text("\n".join(texts(40)) + "\n", encoding="utf-8")
    return folder


def test_an_amalgamation_reads_its_texts_once(place: Path, tmp_path: Path, counts: Counter[str]) -> None:
    teachers = {"one": str(place / "seed1"), "two": str(place / "seed2")}
    told: dict[str, Any] = {"texts": place / "texts.txt", "student": place / "base", "passes": 2, "epochs": 1}
    plait.amalgamate(teachers, out=tmp_path / "s", max_length=32, **told)
    # The head of the file shows which columns there are; then it is read whole.
    assert counts[f"pass {place / 'texts.txt'}"] == 2
    assert counts[f"texts hashed {place / 'texts.txt'}"] == 1
    assert [counts[f"tokenizer {place / name}"] for name in ("seed1", "seed2", "base")] == [1, 1, 2]
    assert [counts[f"config {place / name}"] for name in ("seed1", "seed2")] == [1, 1]
    assert most(counts, "hash") == 1
    assert counts["store"] == 0


def test_a_distilled_ensemble_reads_its_texts_once(place: Path, tmp_path: Path, counts: Counter[str]) -> None:
    told = {**QUICK, "members": None, "held_back": 0.0}
    plait.ensemble(
        place / "base", sources=[place / "seed1", place / "seed2"], texts=place / "texts.txt",
        method="distilled", out=tmp_path / "d", **{name: value for name, value in told.items() if value is not None},
    )  # fmt: skip
    assert counts[f"pass {place / 'texts.txt'}"] == 2
    for name in ("seed1", "seed2", "base"):
        assert [counts[f"{what} {place / name}"] for what in ("config", "tokenizer")] == [1, 1]
    assert most(counts, "hash") == 1


def test_an_ensemble_opens_its_base_once(place: Path, tmp_path: Path, counts: Counter[str]) -> None:
    plait.ensemble(place / "base", data=place / "train.jsonl", out=tmp_path / "e", **QUICK)
    assert [counts[f"{what} {place / 'base'}"] for what in ("config", "tokenizer", "headers")] == [1, 1, 1]
