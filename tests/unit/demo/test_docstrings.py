"""The demonstration's data: clean, balanced, without leaks from training to test."""

from __future__ import annotations

import pytest

from plait.demo import docstrings as texts
from plait.errors import DataError


@pytest.fixture(scope="module")
def found() -> list[texts.Docstring]:
    whole = texts.FILES_PER_TOPIC
    texts.FILES_PER_TOPIC = 40
    try:
        return texts.harvest(seed=0)
    finally:
        texts.FILES_PER_TOPIC = whole


def test_texts_are_clean_and_unique(found: list[texts.Docstring]) -> None:
    assert len(found) > 300
    assert len({d.text.lower() for d in found}) == len(found)
    for docstring in found:
        assert docstring.text.isascii()
        assert "`" not in docstring.text
        # A text that names its library would give the label away: most topics have a library of their own.
        assert not texts.NAMES.search(docstring.text)


def test_tasks_are_balanced_and_split_by_file(found: list[texts.Docstring]) -> None:
    made = texts.tasks(found, 48, 12, seed=0)
    assert set(made) == {"topic", "kind", "fits"}
    for train, test in made.values():
        assert len(train["text"]) == 48
        assert len(test["text"]) == 12
        assert set(test["label"]) <= set(train["label"])
        for table in (train, test):
            counts = [table["label"].count(label) for label in set(table["label"])]
            assert max(counts) - min(counts) <= 1
    files = {d.text: d.file for d in found}
    train, test = made["topic"]
    assert {files[t] for t in train["text"]}.isdisjoint({files[t] for t in test["text"]})


def test_same_seed_same_data(found: list[texts.Docstring]) -> None:
    assert texts.tasks(found, 48, 12, seed=3) == texts.tasks(found, 48, 12, seed=3)
    assert texts.tasks(found, 48, 12, seed=3) != texts.tasks(found, 48, 12, seed=4)


def test_too_few_texts(found: list[texts.Docstring]) -> None:
    with pytest.raises(DataError, match="ask for fewer examples"):
        texts.tasks(found, 100_000, 16)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Return the :class:`~torch.Tensor` of all ``five`` items.", "Return the .Tensor of all five items."),
        ("Short one.", None),
        ("x -> y = {a: [1, 2, 3], b: (4, 5)} | z & w; %d %s", None),
        ("First paragraph has enough words here.\n\nSecond one.", "First paragraph has enough words here."),
    ],
)
def test_cleaning(raw: str, clean: str | None) -> None:
    assert texts.clean(raw) == clean


def test_names_as_words() -> None:
    assert texts.words_of("getTokenizer_config2") == "get tokenizer config 2"
    assert texts.words_of("BCELoss") == "bce loss"
