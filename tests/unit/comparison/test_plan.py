"""What each candidate will take, and what a budget leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plait.comparison.candidates import SEPARATE
from plait.comparison.estimates import Estimator, rate_of, speed
from plait.comparison.plan import ComparisonPlan, check_budget, planned, time_told
from plait.errors import RecipeError
from plait.merging.rule import RULES
from tests.unit.comparison.conftest import TASKS, recipe_in


@pytest.fixture(scope="module")
def job(different: Path) -> ComparisonPlan:
    return planned(recipe_in(different, TASKS, text=str(different / "mood.train.jsonl")))


def within(job: ComparisonPlan, budget: str | None) -> ComparisonPlan:
    recipe = job.recipe.model_copy(update={"budget": budget})
    return ComparisonPlan(replace(job.situation, recipe=recipe), job.candidates, job.estimator)


def test_estimates_are_in_the_order_of_the_work(job: ComparisonPlan) -> None:
    seconds = {name: cost.seconds for name, cost in job.costs.items()}
    assert seconds["merge/average"] < seconds["merge/regmean"] < seconds["merge/refine"]
    assert seconds["merge/average"] < seconds["amalgamate/auto"]
    assert job.costs["merge/fisher"].bytes > job.costs["merge/average"].bytes
    assert all(cost.making >= 0 and cost.scoring > 0 for cost in job.costs.values())


def test_estimates_grow_with_rows_and_slower_machines(job: ComparisonPlan) -> None:
    slow = Estimator(job.situation, flops=job.estimator.flops / 10)
    rows = job.situation.material.tests[0].rows
    source = job.situation.material.sources[0]
    assert slow.forward(source, rows) > job.estimator.forward(source, rows)
    assert slow.forward(source, rows, 4) < slow.forward(source, rows)
    assert speed(0.01) > 1e7


def test_rules_that_decompose_cost_more_than_those_that_add() -> None:
    assert rate_of(RULES["average"]) < rate_of(RULES["ties"]) < rate_of(RULES["regmean"])


def test_without_a_budget_the_defaults_are_tried(job: ComparisonPlan) -> None:
    chosen = job.chosen()
    assert chosen["merge/ties"] is None
    assert chosen["amalgamate/auto"] is None
    assert "left out by default" in str(chosen["amalgamate/merged"])
    assert "--methods merged" in str(chosen["amalgamate/merged"])


def test_a_budget_is_spent_in_order_and_never_exceeded(job: ComparisonPlan) -> None:
    total = job.costs[SEPARATE].seconds + job.costs["merge/heads"].seconds + job.costs["merge/actmerge"].seconds
    small = within(job, f"{total + 0.01:.3f}s")
    tried = [name for name, reason in small.chosen().items() if reason is None]
    assert tried[0] == SEPARATE
    assert sum(job.costs[name].seconds for name in tried) <= total + 0.02
    assert "of the budget of" in str(small.chosen()["amalgamate/auto"])
    assert within(job, "9h").chosen()["amalgamate/merged"] is None


def test_a_slow_machine_leaves_out_more(job: ComparisonPlan) -> None:
    heads = next(c for c in job.candidates if c.id == "merge/heads")
    one = within(job, f"{job.costs['merge/heads'].seconds * 2:.3f}s")
    assert one.left_out(heads, spent=0.0) is None
    assert "takes about" in str(one.left_out(heads, spent=0.0, pace=3.0))


def test_too_small_a_budget_says_what_the_cheapest_costs(job: ComparisonPlan) -> None:
    with pytest.raises(RecipeError, match=r"budget 0.001s is too small for anything: .* merge/\w+, takes about"):
        check_budget(within(job, "0.001s"))
    check_budget(within(job, "1h"))


def test_the_plan_is_plain_data(job: ComparisonPlan) -> None:
    told = job.describe()
    assert told["tests"]["mood"]["rows"] == 48
    assert len(told["candidates"]) == len(job.candidates)
    assert told["estimated_seconds"] > 0


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.25, "0.2 s"), (42, "42 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_times_as_people_say_them(seconds: float, said: str) -> None:
    assert time_told(seconds) == said
