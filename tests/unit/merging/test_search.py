"""What a search varies, on which rows, and which trials count."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from plait.data import Examples
from plait.errors import DataError, MergeError, RecipeError
from plait.merging.rule import RULES
from plait.merging.search.run import best_of, spoken
from plait.merging.search.space import Axis, search_ranges
from plait.merging.search.study import settled, shown
from plait.merging.search.validation import split_rows


def test_ranges_are_declared_or_limits_with_two_ends() -> None:
    assert search_ranges(RULES["ties"]) == {"density": (0.05, 1.0), "scale": (0.1, 3.0)}
    assert search_ranges(RULES["cart"]) == {"keep": (0.0, 1.0)}
    assert search_ranges(RULES["average"]) == {}


def test_values_have_few_digits_and_stay_inside() -> None:
    wide = Axis("ridge", 1e-4, 10.0, 0.01)
    assert wide.logarithmic
    assert wide.rounded(0.0012345678) == 0.001235
    assert Axis("x", 0.33333, 0.66666, 0.5).rounded(0.333331) == 0.33333
    assert not Axis("scale", 0.1, 3.0, 1.0).logarithmic
    assert spoken({"density": 0.3, "weight of a": 1.0}) == "--set density=0.3 --weight a=1.0"


def rows(*texts: str, labels: bool = True, source: str = "f") -> Examples:
    return Examples(texts, labels=tuple(i % 2 for i in range(len(texts))) if labels else None, source=source)


@dataclass
class Source:
    name: str = "a"
    kind: str = "sequence_classification"
    problem_type: str = "single_label_classification"
    labels: tuple[str, ...] = ("no", "yes")


def split(tasks: Any = None, given: Any = (), data: Any = (), judged: Any = (), limit: int = 100) -> Any:
    chosen = tasks or {"a": [Source()]}
    return split_rows(chosen, dict(given), dict(data), dict(judged), limit=limit, seed=0)


def test_given_rows_come_first_and_none_is_judged(caplog: pytest.LogCaptureFixture) -> None:
    found = split(given={"a": rows("p", "q", "r")}, data={"a": rows("x")}, judged={"a": rows("r", "s")})
    assert found.rows["a"].texts == ("p", "q")
    assert found.judged["a"].texts == ("r", "s")
    assert "1 of 3 rows of f are evaluated on as well" in caplog.text


def test_labelled_data_then_half_of_what_is_judged() -> None:
    test = rows(*map(str, range(10)))
    assert split(data={"a": rows("x", "y")}, judged={"a": test}).rows["a"].texts == ("x", "y")
    for data in ({}, {"a": rows("x", "y", labels=False)}, {"a": test}):
        found = split(data=data, judged={"a": test})
        assert len(found.rows["a"]) == len(found.judged["a"]) == 5
        assert {*found.rows["a"].texts, *found.judged["a"].texts} == set(test.texts)
        assert found.rows == split(data=data, judged={"a": test}).rows
    assert len(split(data={"a": test}, limit=3).rows["a"]) == 3


def test_sources_of_one_task_count_alike_and_in_the_order_of_the_first() -> None:
    pair = {"t": [Source("a"), Source("b", labels=("yes", "no"))]}
    found = split(pair, data={"a": rows("p", "q", "r"), "b": rows("x", "y")})
    assert len(found.rows["t"]) == 4
    by_text = dict(zip(found.rows["t"].texts, found.rows["t"].labels, strict=True))
    assert (by_text["x"], by_text["y"]) == (1, 0)


def test_tasks_without_rows_are_refused() -> None:
    two = {"a": [Source("a")], "b": [Source("b")]}
    with pytest.raises(RecipeError, match="labelled rows of b to search on: give --validation b=FILE"):
        split(two, data={"a": rows("x", "y")})
    with pytest.raises(RecipeError, match="needs heads to score by"):
        split({"a": [Source(kind="body")]})
    with pytest.raises(DataError, match="3 rows to evaluate on; expected 4 or more"):
        split(judged={"a": rows("x", "y", "z")})
    with pytest.raises(DataError, match="task a: 1 of 2 validation rows are not evaluated on as well; expected 2"):
        split(given={"a": rows("x", "y")}, judged={"a": rows("x", "z")})


@dataclass
class Trial:
    number: int
    name: str
    value: float | None = None
    user_attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> Any:
        return SimpleNamespace(name=self.name)


def test_which_trials_count() -> None:
    done = [Trial(0, "COMPLETE", 0.5), Trial(1, "FAIL"), Trial(2, "PRUNED"), Trial(3, "FAIL", None, {"reason": "NaN"})]
    assert settled(done, 4) is None  # nobody ended trial 1: its process died
    assert [t.number for t in settled(done, 3)] == [0, 2, 3]
    late = [Trial(0, "COMPLETE", 0.5), Trial(1, "RUNNING"), Trial(2, "COMPLETE", 0.9), Trial(3, "RUNNING")]
    assert settled(late, 2) is None  # trial 1 may still be the better one
    assert [t.number for t in settled([*late[:1], *late[2:]], 2)] == [0, 2]


def test_best_is_the_first_of_equals() -> None:
    equal = [Trial(0, "PRUNED", 0.95), Trial(1, "COMPLETE", 0.9), Trial(2, "COMPLETE", 0.9)]
    assert best_of(equal).number == 1
    with pytest.raises(MergeError, match="all 1 trials failed: NaN"):
        best_of([Trial(0, "FAIL", None, {"reason": "NaN"})])


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://me:secret@host/db") == "postgresql://me:…@host/db"
    assert shown("sqlite:///a.db") == "sqlite:///a.db"
