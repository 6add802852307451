"""The answer: Pareto front and recommendation."""

from __future__ import annotations

import numpy as np
import pytest

from plait.comparison.answer import SEPARATE, Standing, best_of, front, level_with, pareto, recommend
from plait.evaluation.relative import Relative, RelativeScore
from tests.reference.evaluation import dominated

NOISE = np.random.default_rng(0).normal(size=500)


def standing(name: str, mean: float, worst: float | None = None, *, own: float = 0.0, **costs: float) -> Standing:
    """A candidate whose mean has a spread of 0.01 shared by all, and `own` of its own."""
    private = np.random.default_rng(len(name)).normal(size=500)
    samples = mean + 0.01 * NOISE + own * private
    tasks = {"easy": RelativeScore(mean), "hard": RelativeScore(mean if worst is None else worst)}
    low, high = np.quantile(samples, [0.025, 0.975])
    relative = Relative(tasks, mean, float(low), float(high), "hard", samples)
    return Standing(name, relative, **{"parameters": 1e6, "bytes": 4e6, "latency": 0.01, "seconds": 1.0, **costs})


APART = standing(SEPARATE, 1.0, bytes=24e6, parameters=6e6, latency=0.06)


def test_pareto_is_what_nobody_dominates() -> None:
    rows = np.random.default_rng(0).integers(0, 4, (60, 3)).astype(float).tolist()
    assert pareto(rows) == [at for at, beaten in enumerate(dominated(rows)) if not beaten]
    assert pareto([[1, 1], [1, 1], [0, 2], [0, 1]]) == [0, 1, 2]
    assert pareto([[float("nan"), 1], [0, 1]]) == [1]
    assert pareto([]) == []


def test_front() -> None:
    slow = standing("slow", 0.97, latency=0.02)
    found = front([APART, standing("good", 0.97), slow, standing("sturdy", 0.96, 0.96), standing("frail", 0.97, 0.5)])
    assert found == [SEPARATE, "good"]
    unmeasured = Standing("bare", standing("bare", 0.99).relative)
    assert front([standing("good", 0.97), unmeasured]) == ["good", "bare"]


def test_the_sources_are_never_the_best_candidate() -> None:
    assert best_of([APART, standing("merge", 0.5)]).name == "merge"
    assert best_of([APART]) is None
    assert recommend([APART]).name is None


def test_cheapest_of_those_level() -> None:
    best = standing("ensemble", 0.975, bytes=24e6, latency=0.06, calibration=0.02)
    small = standing("merge/x", 0.970, own=0.01, bytes=4e6, latency=0.03, calibration=0.05)
    fast = standing("student", 0.968, own=0.01, bytes=4.5e6, latency=0.002, calibration=0.06)
    bad = standing("average", 0.92, bytes=1e6, latency=0.001, calibration=0.001)
    every = [APART, best, small, fast, bad]
    assert [s.name for s in level_with(best, every)] == ["merge/x", "student"]
    chosen = {p: recommend(every, p).name for p in ("accuracy", "size", "speed", "calibration")}
    assert chosen == {"accuracy": "merge/x", "size": "merge/x", "speed": "student", "calibration": "ensemble"}
    found = recommend(every, "speed")
    assert (found.best, set(found.level_with)) == ("ensemble", {"ensemble", "merge/x"})
    assert found.reason == (
        f"student keeps 96.8 % ({100 * fast.relative.low:.1f}–{100 * fast.relative.high:.1f}) of the separate models' "
        f"scores in 4 MB instead of 24 MB, level with the best, ensemble (97.5 % "
        f"({100 * best.relative.low:.1f}–{100 * best.relative.high:.1f})), and it is the fastest."
    )
    assert "the highest mean and the best calibration" in recommend(every, "calibration").reason


def test_one_that_is_clearly_best_wins_whatever_it_costs() -> None:
    found = recommend([APART, standing("big", 0.99, bytes=20e6), standing("little", 0.93)], "size")
    assert found.name == "big"
    assert found.reason.endswith("in 20 MB instead of 24 MB; no other candidate is level with it.")
    assert found.level_with == ()


@pytest.mark.parametrize(("mean", "worst"), [(0.6, 0.5), (0.95, 0.4)])
def test_nothing_acceptable(mean: float, worst: float) -> None:
    found = recommend([APART, standing("merge", mean, worst)])
    assert found.name == SEPARATE
    assert f"the best, merge, keeps {100 * mean:.1f} %" in found.reason
    assert f"{100 * worst:.0f} % on its worst task, hard" in found.reason
    assert found.reason.endswith("costs 24 MB on disk instead of 4 MB and 60.0 ms a text instead of 10.0.")
    assert recommend([standing("merge", mean, worst)]).name is None


def test_a_worst_task_below_what_is_acceptable_is_passed_over() -> None:
    found = recommend([APART, standing("frail", 0.97, 0.5), standing("sturdy", 0.94, 0.9)])
    assert found.name == "sturdy"
    assert found.best == "frail"
