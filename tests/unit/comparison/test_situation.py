"""What is possible with given sources, and why the rest is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.comparison.candidates import Candidate, candidates_of
from plait.comparison.situation import check_possible
from plait.errors import MergeError, RecipeError
from plait.merging.rule import RULES
from tests.unit.comparison.conftest import SAME, TASKS, situation_in


def reasons(situation: object) -> dict[str, tuple[bool, str]]:
    return {way.name: (way.possible, way.reason) for way in situation.ways}  # type: ignore[attr-defined]


def by_id(found: list[Candidate]) -> dict[str, Candidate]:
    return {candidate.id: candidate for candidate in found}


def test_different_heads_of_one_base_merge_and_teach(different: Path) -> None:
    found = situation_in(different, TASKS)
    ways = reasons(found)
    assert ways["merge"] == (True, "one encoder (bert) with 2 heads")
    assert ways["amalgamate"] == (True, "one student for 5 labels")
    assert not ways["soup"][0]
    assert "different labels" in ways["ensemble"][1]
    assert found.base is not None
    assert found.base.origin.endswith("bert-base")


def test_equal_labels_are_one_task_in_any_order(same: Path) -> None:
    found = situation_in(same, SAME)
    ways = reasons(found)
    assert found.material.tasks == {"all": (0, 1, 2)}
    assert ways["soup"][0]
    assert ways["ensemble"][0]
    assert not ways["amalgamate"][0]
    candidates = by_id(candidates_of(found))
    assert {"ensemble/separate", "ensemble/shared", "ensemble/greedy_soup", "ensemble/distilled"} <= set(candidates)
    assert "one head" in candidates["merge/average"].title
    recipe = candidates["merge/average"].recipe
    assert {source.task for source in recipe.sources.values()} == {"all"}  # type: ignore[union-attr]


def test_a_task_can_be_named_and_kept_apart(same: Path) -> None:
    found = situation_in(same, SAME)
    recipe = found.recipe
    sources = {n: s.model_copy(update={"task": "art" if n != "songs" else "songs"}) for n, s in recipe.sources.items()}
    from plait.comparison.material import tasks_of

    told = recipe.model_copy(update={"sources": sources})
    assert tasks_of(told, found.material.sources) == {"art": (0, 1), "songs": (2,)}


def test_other_architectures_teach_alone(foreign: Path) -> None:
    found = situation_in(foreign, TASKS)
    ways = reasons(found)
    assert not ways["merge"][0]
    assert "different architectures" in ways["merge"][1]
    assert "the only way for different tokenizers or architectures" in ways["amalgamate"][1]
    candidates = by_id(candidates_of(found))
    assert [c.id for c in candidates.values() if c.reason is None and c.default] == ["separate", "amalgamate/teacher"]
    assert "no base is known" in str(candidates["amalgamate/auto"].reason)


def test_what_was_asked_for_must_be_possible(foreign: Path, different: Path) -> None:
    with pytest.raises(MergeError, match="mood, topic cannot be combined: merge: different architectures"):
        check_possible(situation_in(foreign, TASKS, only=["merge"]))
    with pytest.raises(RecipeError, match="--methods slerp,refine: none of them is of --only amalgamate"):
        candidates_of(situation_in(different, TASKS, only=["amalgamate"], methods=["slerp", "refine"]))


def test_every_rule_takes_part_the_tested_ones_first(different: Path) -> None:
    found = candidates_of(situation_in(different, TASKS, only=["merge"]))
    names = [candidate.method for candidate in found]
    assert names[:6] == ["separate", "heads", "refine", "actmerge", "regmean", "average"]
    assert set(names) == {"separate", "heads", "refine", *RULES}
    assert all(candidate.reason is None for candidate in found)


def test_rules_say_what_they_lack(different: Path) -> None:
    found = by_id(candidates_of(situation_in(different, TASKS, data=False)))
    assert "needs texts of mood, topic (--data mood=FILE)" in str(found["merge/regmean"].reason)
    assert "needs texts" in str(found["merge/refine"].reason)
    assert found["merge/actmerge"].reason is None


def test_methods_are_named_as_people_know_them(different: Path) -> None:
    chosen = candidates_of(situation_in(different, TASKS, methods=["default", "task-arithmetic"]))
    assert [c.id for c in chosen] == ["separate", "merge/refine", "merge/task_arithmetic"]
    without = candidates_of(situation_in(different, TASKS, methods=["default"], data=False))
    assert [c.id for c in without] == ["separate", "merge/actmerge"]


def test_texts_bring_students_in(different: Path) -> None:
    told = situation_in(different, TASKS, text=str(different / "mood.train.jsonl"))
    found = by_id(candidates_of(told))
    assert found["amalgamate/auto"].default
    assert not found["amalgamate/merged"].default
    assert found["amalgamate/merged"].recipe.student == "merged"  # type: ignore[union-attr]
    assert not by_id(candidates_of(situation_in(different, TASKS)))["amalgamate/auto"].default
