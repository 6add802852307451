"""Scores of uncertainty by hand, against loops, and at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss

from plait.errors import DataError
from plait.evaluation import metrics as u

TABLE = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
LABELS = np.array([0, 1, 1, 1])


def many(seed: int = 0, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    table = random.dirichlet([0.4] * 4, size=n)
    return table, np.array([random.choice(4, p=row) for row in table])


def test_proper_scores_by_hand():
    assert u.nll(TABLE, LABELS) == pytest.approx(-math.log(0.9 * 0.4 * 0.8 * 0.7) / 4)
    assert u.brier(TABLE, LABELS) == pytest.approx(2 * (0.01 + 0.36 + 0.04 + 0.09) / 4)


def test_proper_scores_against_loops():
    table, labels = many()
    wanted = [sum((row[c] - (c == y)) ** 2 for c in range(4)) for row, y in zip(table, labels, strict=True)]
    assert u.brier(table, labels) == pytest.approx(np.mean(wanted))
    assert u.nll(table, labels) == pytest.approx(log_loss(labels, table, labels=range(4)))


def test_scores_are_proper():
    """Nobody does better in expectation than by saying what is true."""
    true = np.array([0.5, 0.3, 0.2])
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    others = np.random.default_rng(0).dirichlet([1, 1, 1], size=50)
    for score in (u.nll, u.brier):
        best = score(np.tile(true, (100, 1)), labels)
        assert all(score(np.tile(other, (100, 1)), labels) > best for other in others)


def test_a_certain_error_costs_much_but_not_infinitely():
    assert u.nll([[1.0, 0.0]], [1]) == pytest.approx(708.4, abs=0.1)
    assert u.brier([[1.0, 0.0]], [1]) == 2.0


def test_risk_coverage_by_hand():
    curve = u.risk_coverage([0.9, 0.6, 0.8, 0.7], [0, 1, 0, 0])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk.tolist() == [0, 0, 0, 0.25]
    assert curve.area == 0.0625
    worst = u.risk_coverage([0.1, 0.6, 0.2, 0.3], [0, 1, 0, 0])
    assert worst.risk.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_points_of_a_curve_are_the_surest_shares_of_it():
    curve = u.risk_coverage([0.9, 0.6, 0.8, 0.7], [0, 1, 0, 0])
    assert curve.points() == {"coverage": [0.25, 0.5, 0.75, 1.0], "risk": [0, 0, 0, 0.25]}
    assert curve.points(2) == {"coverage": [0.5, 1.0], "risk": [0, 0.25]}
    long = u.risk_coverage(np.linspace(1, 0, 1000), np.arange(1000) % 2)
    assert long.points()["coverage"] == pytest.approx([k / 100 for k in range(1, 101)])
    assert long.points()["risk"][-1] == 0.5


def test_risk_coverage_against_a_loop():
    random = np.random.default_rng(1)
    sure, losses = random.random(100), random.random(100)
    order = sorted(range(100), key=lambda i: -sure[i])
    wanted = [np.mean([losses[i] for i in order[: k + 1]]) for k in range(100)]
    np.testing.assert_allclose(u.risk_coverage(sure, losses).risk, wanted)


def test_equal_confidence_gives_the_expected_risk_over_orders():
    """All orders of the tied examples, averaged."""
    from itertools import permutations

    sure, losses = np.array([3, 2, 2, 2, 1]), np.array([0, 1, 0, 1, 0])
    curves = []
    for order in permutations([1, 2, 3]):
        rows = losses[[0, *order, 4]]
        curves.append(np.cumsum(rows) / np.arange(1, 6))
    np.testing.assert_allclose(u.risk_coverage(sure, losses).risk, np.mean(curves, axis=0))
    mixed = [3, 1, 0, 4, 2]
    np.testing.assert_allclose(
        u.risk_coverage(sure[mixed], losses[mixed]).risk, u.risk_coverage(sure, losses).risk
    )


def test_all_scores_of_a_model():
    found = u.uncertainty(TABLE, LABELS)
    assert found == {
        "nll": pytest.approx(u.nll(TABLE, LABELS)),
        "brier": pytest.approx(u.brier(TABLE, LABELS)),
        "calibration_error": pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4),
        "aurc": pytest.approx(1 / 16),
        "excess_aurc": pytest.approx(0.0),
    }
    table, labels = many()
    assert u.uncertainty(table, labels)["excess_aurc"] > 0


def test_several_labels_are_so_many_questions():
    p, y = np.array([[0.9, 0.2], [0.4, 0.7]]), np.array([[1.0, 0.0], [1.0, 0.0]])
    table, truth = u.yes_or_no(p, y)
    assert truth.tolist() == [1, 0, 1, 0]
    found = u.uncertainty(table, truth)
    assert found["nll"] == pytest.approx(-math.log(0.9 * 0.8 * 0.4 * 0.3) / 4)
    assert found["brier"] == pytest.approx(2 * (0.01 + 0.04 + 0.36 + 0.49) / 4)
    with pytest.raises(DataError, match="expected one shape for both"):
        u.yes_or_no(p, [1, 0])


def test_confidence_that_knows_nothing_has_the_error_rate_as_its_area():
    losses = np.random.default_rng(2).random(50) < 0.3
    assert u.risk_coverage(np.ones(50), losses).area == pytest.approx(losses.mean())


def test_out_of_scope_by_counting_pairs():
    table, _ = many(3, 60)
    outside = np.arange(60) % 3 == 0
    information = np.random.default_rng(4).random(60) + outside
    found = u.out_of_scope(table, outside, information)
    scores = {
        "max_probability": 1 - table.max(1),
        "entropy": np.array([-sum(p * math.log(p) for p in row if p > 0) for row in table]),
        "mutual_information": information,
    }
    assert set(found) == {f"{kind}_{name}" for kind in ("auroc", "aupr") for name in scores}
    for name, score in scores.items():
        pairs = [float(a > b) + 0.5 * float(a == b) for a in score[outside] for b in score[~outside]]
        assert found[f"auroc_{name}"] == pytest.approx(np.mean(pairs))
        ranked = outside[np.argsort(-score)]
        precision = np.cumsum(ranked) / np.arange(1, 61)
        assert found[f"aupr_{name}"] == pytest.approx(precision[ranked].mean())


def test_out_of_scope_without_members_has_no_information():
    assert set(u.out_of_scope(TABLE, [0, 1, 0, 0])) == {
        "auroc_max_probability", "auroc_entropy", "aupr_max_probability", "aupr_entropy",
    }  # fmt: skip
    assert u.out_of_scope(TABLE, [0, 1, 0, 0])["auroc_entropy"] == 1.0


def test_entropy_at_its_ends():
    np.testing.assert_allclose(u.entropy([[1.0, 0.0], [0.5, 0.5]]), [0.0, math.log(2)], atol=1e-12)


@pytest.mark.parametrize("outside", [[0] * 4, [1] * 4, [0, 1]])
def test_out_of_scope_needs_both_kinds(outside: list[int]):
    with pytest.raises(DataError, match="expected some in scope and some out of it"):
        u.out_of_scope(TABLE, outside)


@pytest.mark.parametrize(
    ("table", "labels", "message"),
    [
        (TABLE, [0, 1], r"probabilities \(4, 2\) and labels \(2,\); expected \[N, C\] and \[N\]"),
        (np.zeros((0, 2)), [], "expected"),
        (TABLE, [0, 1, 2, 1], "labels are not all whole numbers from 0 to 1"),
        (TABLE, [0, 1, -100, 1], "labels are not all whole numbers from 0 to 1"),
        (TABLE, [0.0, 1.0, 0.5, 1.0], "labels are not all whole numbers from 0 to 1"),
        (TABLE[0], 0, "expected"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(table: np.ndarray, labels: object, message: str):
    with pytest.raises(DataError, match=message):
        u.uncertainty(table, labels)


@pytest.mark.parametrize("sure", [[], [1.0], [1.0, math.nan]])
def test_confidences_that_do_not_fit(sure: list[float]):
    with pytest.raises(DataError, match="expected one number each per example, none of them NaN"):
        u.risk_coverage(sure, [0, 1])
