"""Metrics against values worked out by hand, and at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plait.evaluation import metrics


def test_classification_by_hand():
    logits = np.log([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    found = metrics.classification(logits, [0, 1, 1, 1])
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["matthews"] == pytest.approx((2 * 1 - 0 * 1) / math.sqrt(2 * 3 * 1 * 2))
    assert found["calibration_error"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)


def test_one_guess_for_all_correlates_with_nothing():
    assert metrics.classification([[1.0, 0.0]] * 4, [0, 1, 0, 1])["matthews"] == 0.0
    assert metrics.classification([[1.0, 0.0]] * 4, [0, 0, 0, 0])["matthews"] == 0.0


def test_calibration_error_is_a_loop_over_bins():
    random = np.random.default_rng(0)
    table = random.dirichlet([0.4] * 4, size=300)
    labels = random.integers(0, 4, 300)
    confidence, right = table.max(1), table.argmax(1) == labels
    expected = 0.0
    for m in range(15):
        inside = [i for i in range(300) if m / 15 < confidence[i] <= (m + 1) / 15]
        if inside:
            gap = abs(np.mean([right[i] for i in inside]) - np.mean([confidence[i] for i in inside]))
            expected += len(inside) / 300 * gap
    assert metrics.calibration_error(table, labels) == pytest.approx(expected)


def test_certainty_counts_in_the_last_bin():
    assert metrics.calibration_error([[1.0, 0.0], [1.0, 0.0]], [0, 1]) == 0.5


def test_regression_by_hand():
    found = metrics.regression([[1.0], [2.0], [4.0]], [1.0, 3.0, 5.0])
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 2, 4], [1, 3, 5])[0, 1])
    assert found["mse"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("guesses", [[1.0, 1.0, 1.0], [2.0]])
def test_constants_correlate_with_nothing(guesses):
    found = metrics.regression(guesses, [1.0, 2.0, 3.0][: len(guesses)])
    assert found["pearson"] == found["spearman"] == 0.0


def test_several_labels_by_hand():
    found = metrics.multi_label([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]], [[1, 0], [1, 0], [0, 1]])
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["macro_f1"] == pytest.approx((1.0 + 0.0) / 2)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_questions_by_hand():
    answers = [(("the red film", 0), ("red", 4)), (), (("John", 0),)]
    found = metrics.questions(["Red film!", "", "Mary"], answers)
    assert found == {"exact_match": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3)}
    half = metrics.questions(["a very red film"], [(("red film", 0),)])
    assert half["exact_match"] == 0
    assert half["f1"] == pytest.approx(2 * 2 / (3 + 2))
