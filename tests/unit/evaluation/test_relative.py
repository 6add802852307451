"""Relative scores: against the slow way, against known distributions, and where nothing can be said."""

from __future__ import annotations

import numpy as np
import pytest

from plait.errors import DataError
from plait.evaluation.outcome import RowSums, products, resampled
from plait.evaluation.relative import difference, ratio, relative_scores, unmeasured
from tests.reference import evaluation as reference


def right(answers) -> RowSums:
    flags = np.asarray(answers, dtype=np.float64)
    return RowSums(np.stack([flags, np.ones_like(flags)], 1), "ratio")


def labels(guess, truth) -> RowSums:
    return RowSums(np.concatenate([guess & truth, guess, truth], 1).astype(np.float64), "macro_f1")


def coins(chance: float, rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(rows) < chance


def test_samples_are_those_of_rows_written_out() -> None:
    draw = np.random.default_rng(1)
    truth = draw.integers(0, 3, 30)
    one, source = (np.where(draw.random(30) < 0.7, truth, 0) for _ in range(2))
    numbers = draw.normal(size=40)
    near, far = numbers + draw.normal(size=40), numbers + 0.3 * draw.normal(size=40)
    yes = draw.random((25, 3)) < 0.5
    some, most = (yes ^ (draw.random((25, 3)) < share) for share in (0.3, 0.1))
    found = relative_scores(
        {"one": {"class": right(one == truth), "number": products(near, numbers), "many": labels(some, yes)}},
        {"class": right(source == truth), "number": products(far, numbers), "many": labels(most, yes)},
        resamples=60, seed=5,
    )["one"]  # fmt: skip
    told = {
        "class": (reference.accuracy, one, source, truth),
        "number": (reference.pearson, near, far, numbers),
        "many": (reference.macro_f1, some, most, yes),
    }
    slow = {
        task: reference.relative_samples(*arrays, reference.rows_of(5, task, len(arrays[-1]), 60))
        for task, arrays in told.items()
    }
    np.testing.assert_allclose(found.samples, np.mean(list(slow.values()), axis=0), rtol=1e-10)
    for task, samples in slow.items():
        score, mine, theirs, given = told[task]
        assert found.tasks[task].value == pytest.approx(score(mine, given) / score(theirs, given))
        assert (found.tasks[task].low, found.tasks[task].high) == pytest.approx(
            tuple(np.quantile(samples, [0.025, 0.975]))
        )
    assert found.worst == min(found.tasks, key=lambda task: found.tasks[task].value)
    assert found.mean == pytest.approx(np.mean([score.value for score in found.tasks.values()]))


def test_width_is_that_of_the_delta_method() -> None:
    """Var(c̄ / s̄) ≈ Var(c − r s) / (n s̄²), r = c̄ / s̄; less than without pairing where both fail on the same rows."""
    hard = coins(0.25, 2000, 0)
    source, candidate = ~hard, ~hard & ~coins(0.04, 2000, 1)
    found = relative_scores({"c": {"t": right(candidate)}}, {"t": right(source)}, resamples=2000)["c"]
    c, s = candidate.astype(float), source.astype(float)
    expected = np.std(c - c.mean() / s.mean() * s) / np.sqrt(2000) / s.mean()
    assert np.std(found.samples) == pytest.approx(expected, rel=0.06)
    apart = np.hypot(c.std() / c.mean(), s.std() / s.mean()) / np.sqrt(2000)
    assert np.std(found.samples) < 0.5 * apart


def test_intervals_hold_the_true_ratio_as_often_as_they_say() -> None:
    inside = 0
    for seed in range(120):
        source, candidate = coins(0.8, 200, 2 * seed), coins(0.6, 200, 2 * seed + 1)
        found = relative_scores({"c": {"t": right(candidate)}}, {"t": right(source)}, resamples=200)["c"]
        inside += found.low <= 0.75 <= found.high
    assert 0.88 <= inside / 120 <= 0.99


def test_tasks_are_independent() -> None:
    """The mean over k alike tasks is √k times surer than one."""
    source, candidate = right(coins(0.9, 400, 0)), right(coins(0.7, 400, 1))
    one = relative_scores({"c": {"a": candidate}}, {"a": source}, resamples=2000)["c"]
    names = ["a", "b", "c", "d"]
    four = relative_scores({"c": dict.fromkeys(names, candidate)}, dict.fromkeys(names, source), resamples=2000)["c"]
    assert np.std(four.samples) == pytest.approx(np.std(one.samples) / 2, rel=0.08)


def test_a_candidate_alone_is_paired_with_others_by_the_seed() -> None:
    source = {"t": right(coins(0.9, 200, 0))}
    one, other = ({"t": right(coins(0.8, 200, seed))} for seed in (1, 2))
    both = relative_scores({"one": one, "other": other}, source, seed=3)
    again = relative_scores({"other": other}, source, seed=3)
    np.testing.assert_array_equal(both["other"].samples, again["other"].samples)
    assert difference(both["one"], again["other"]) == difference(both["one"], both["other"])


def test_differences() -> None:
    truth = coins(0.9, 1000, 0)
    source = {"t": right(truth)}
    found = relative_scores(
        {
            "good": {"t": right(truth & ~coins(0.02, 1000, 1))},
            "same": {"t": right(truth & ~coins(0.02, 1000, 2))},
            "bad": {"t": right(truth & ~coins(0.2, 1000, 3))},
        },
        source,
    )
    assert difference(found["good"], found["same"]).level
    apart = difference(found["good"], found["bad"])
    assert not apart.level
    assert 0 < apart.low < apart.value < apart.high
    assert difference(found["good"], found["good"]).level
    assert (found["good"].to_dict()["worst"]) == {"task": "t", "relative": found["good"].mean}


def test_the_source_itself_is_exactly_one() -> None:
    source = {"t": right(coins(0.7, 50, 0)), "u": right(coins(0.5, 50, 1))}
    found = relative_scores({"separate": source}, source)["separate"]
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


def test_sources_near_zero_say_nothing() -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(size=100)
    noise, tiny = products(draw.normal(size=100), truth), right([False] * 99 + [True])
    # A score that is not small, from so few rows that it could well be nothing.
    few = right([True, False, False, False])
    good = right(coins(0.8, 100, 1))
    sources = {"noise": noise, "tiny": tiny, "few": few, "good": good}
    left_out = unmeasured(sources)
    assert set(left_out) == {"noise", "tiny", "few"}
    assert left_out["tiny"].startswith("task tiny: its source scores 0.010 on 100 rows, not clearly above zero")
    found = relative_scores({"c": sources}, sources)["c"]
    assert list(found.tasks) == ["good"]
    assert found.mean == 1.0
    nothing = relative_scores({"c": {"tiny": tiny}}, {"tiny": tiny})["c"]
    assert (nothing.mean, nothing.worst, nothing.to_dict()["worst"]) == (None, None, None)
    assert difference(nothing, found) is None


def test_too_few_rows_have_no_interval() -> None:
    one = right([True])
    found = relative_scores({"c": {"t": one}}, {"t": one})["c"]
    assert (found.mean, found.low, found.samples) == (1.0, None, None)
    assert difference(found, found).level


def test_less_is_better() -> None:
    """Of perplexities or bits per byte the source's is divided by the candidate's."""
    source, candidate = (RowSums(np.stack([bits, np.full(4, 10.0)], 1), "ratio", falling=True)
                         for bits in (np.full(4, 8.0), np.full(4, 10.0)))  # fmt: skip
    found = relative_scores({"c": {"t": candidate}}, {"t": source})["c"]
    assert (found.mean, found.low) == pytest.approx((0.8, 0.8))


def test_ratios_without_sense_are_no_numbers() -> None:
    assert np.isnan(ratio(0.5, 0.0))
    assert np.isnan(ratio(0.5, -0.1))
    assert ratio(0.5, 0.25) == 2.0
    assert ratio(-0.1, 0.5) == -0.2


def test_other_rows_are_refused() -> None:
    with pytest.raises(DataError, match="task t: c answered 3 rows and the source 4; expected the same rows"):
        relative_scores({"c": {"t": right([1, 0, 1])}}, {"t": right([1, 1, 1, 0])})
    with pytest.raises(DataError, match="c has no answers for t"):
        relative_scores({"c": {}}, {"t": right([1, 1])})
    with pytest.raises(ValueError, match=r"answers to \[2, 3\] rows"):
        resampled([right([1, 1]), right([1, 1, 0])])
