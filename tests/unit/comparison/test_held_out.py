"""Rows to test on: cut without leaks, aligned by name, counted where they stand in the data too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plait.comparison.held_out import CUT, GIVEN, cut, leaked
from plait.comparison.material import InMemory, gather
from plait.data import Examples
from plait.errors import DataError, RecipeError
from tests.comparing import rows, source
from tests.unit.comparison.conftest import SAME, TASKS, recipe_in


def test_no_row_is_on_both_sides() -> None:
    texts = tuple(f"text {i % 30}" for i in range(60))
    rest, test = cut(Examples(texts, labels=tuple(i % 2 for i in range(60))), 0.5, seed=3)
    assert len(test) == 30
    assert not set(rest.texts) & set(test.texts)
    assert leaked(test, [rest]) == 0
    assert cut(Examples(texts), 0.5, seed=3)[1].texts == test.texts


def test_pairs_are_one_row() -> None:
    test = Examples(("a", "a"), pairs=("b", "c"))
    assert leaked(test, [Examples(("a", "x"), pairs=("c", "b"))]) == 1
    assert leaked(test, [Examples(("a",))]) == 0


def test_too_few_rows_are_said() -> None:
    with pytest.raises(DataError, match="data: 1 rows are too few to be cut into data and test"):
        cut(Examples(("a",), labels=(0,)), 0.5, seed=0)


def test_test_rows_are_those_of_their_source(different: Path) -> None:
    found = gather(recipe_in(different, TASKS, limit=20))
    mood, topic = found.tests
    assert (mood.name, mood.task, mood.members, mood.origin) == ("mood", "mood", (0,), GIVEN)
    assert mood.labels == TASKS["mood"]
    assert len(topic.rows) == 20
    assert found.whole == {"mood", "topic"}
    assert found.space is not None
    assert found.space.names == (*TASKS["mood"], *TASKS["topic"])


def test_labels_follow_names_not_positions(same: Path) -> None:
    found = gather(recipe_in(same, SAME))
    books = next(test for test in found.tests if test.name == "books")
    assert books.labels == ("yes", "no")
    assert books.task == "all"


def test_a_name_of_your_own_is_scored_over_all_labels(different: Path, tmp_path: Path) -> None:
    lines = [(different / f"{name}.test.jsonl").read_text() for name in TASKS]
    (tmp_path / "both.jsonl").write_text("".join(lines))
    recipe = recipe_in(different, TASKS, test=False).model_dump()
    both = {"test": {"both": str(tmp_path / "both.jsonl")}}
    from plait.recipe import CompareRecipe

    found = gather(CompareRecipe.model_validate({**recipe, **both}))
    (test,) = found.tests
    assert test.across
    assert test.members == (0, 1)
    assert test.labels == (*TASKS["mood"], *TASKS["topic"])
    assert not found.notes


def test_a_misspelt_name_with_other_labels_is_explained(different: Path, tmp_path: Path) -> None:
    model = source(tmp_path, "odd", ("x", "y"), seed=5)
    file = rows(model, tmp_path / "odd.jsonl", 12, seed=5)
    recipe = recipe_in(different, TASKS).model_copy(update={"test": {}})
    with pytest.raises(DataError, match=r"test 'mod' names no source \(did you mean 'mood'"):
        gather(recipe, InMemory({}, {"mod": str(file)}))
    with pytest.raises(DataError, match="all its labels are those of topic; call it topic"):
        gather(recipe, InMemory({}, {"mod": str(different / "topic.test.jsonl")}))


def test_what_is_cut_is_said_and_kept_apart(different: Path) -> None:
    found = gather(recipe_in(different, TASKS, test=False, test_share=0.25))
    assert {test.origin for test in found.tests} == {CUT}
    assert {len(test.rows) for test in found.tests} == {12}
    assert not found.whole
    assert all(test.overlap == 0 for test in found.tests)
    assert any("12 of the 48 rows" in note for note in found.notes)


def test_rows_in_memory_are_taken(different: Path) -> None:
    given: dict[str, Any] = {"mood": {"text": ["a b", "c d", "e f", "g h"], "label": ["bad", "good", "bad", "mixed"]}}
    found = gather(recipe_in(different, TASKS, data=False), InMemory(given, {}, ["one text", "another"]))
    assert len(found.data["mood"]) == 4
    assert found.told
    assert found.texts is not None
    assert found.texts.texts == ("one text", "another")
    with pytest.raises(RecipeError, match="data of no source 'moot'"):
        gather(recipe_in(different, TASKS), InMemory({"moot": given["mood"]}, {}))


def test_texts_of_the_data_are_taken_once(different: Path) -> None:
    found = gather(recipe_in(different, TASKS))
    assert found.texts is not None
    assert not found.told
    assert len(set(found.texts.texts)) == len(found.texts)
    assert set(found.texts.texts) == {text for rows in found.data.values() for text in rows.texts}


def test_sources_without_anything_to_test_on(different: Path) -> None:
    with pytest.raises(DataError, match="no labelled rows for mood, topic"):
        gather(recipe_in(different, TASKS, data=False, test=False))
