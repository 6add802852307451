"""Numbers that say how members differ, against loops over examples, and what they add up to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from plait.ensembles import diversity as d
from plait.errors import DataError, RecipeError
from tests.reference import ensembles as reference

SINGLE, SEVERAL, NUMBER = "single_label_classification", "multi_label_classification", "regression"


def drawn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double() * scale


LABELS = torch.tensor([0, 1, 2, 0, 1, 1])


@pytest.mark.parametrize("members", [1, 2, 5])
def test_classes_against_loops(members: int):
    z = drawn(members, 6, 3, seed=members)
    assert d.diversity(z, LABELS) == {
        "consistency": pytest.approx(reference.to_the_mean(z, SINGLE), abs=1e-13),
        "diversity": pytest.approx(reference.gain(z, SINGLE), abs=1e-13),
        "disagreement": pytest.approx(reference.disagreement(z)),
        "mutual_information": pytest.approx(reference.mutual_information(z, SINGLE), abs=1e-13),
        "true_probability_variance": pytest.approx(
            reference.true_probability_variance(z, LABELS.tolist()), abs=1e-13
        ),
        "oracle_accuracy": pytest.approx(reference.oracle(z, LABELS.tolist())),
    }


@pytest.mark.parametrize("members", [1, 2, 5])
def test_several_labels_against_loops(members: int):
    z, y = drawn(members, 6, 3, seed=members), drawn(6, 3, seed=99) > 0
    p, pairs = z.sigmoid(), [(i, j) for i in range(members) for j in range(i)]
    different = [(z[i].sign() != z[j].sign()).double().mean() for i, j in pairs]
    right = [any(torch.equal(z[j, i] > 0, y[i]) for j in range(members)) for i in range(6)]
    assert d.diversity(z, y.double(), SEVERAL) == {
        "consistency": pytest.approx(reference.to_the_mean(z, SEVERAL), abs=1e-13),
        "diversity": pytest.approx(reference.gain(z, SEVERAL), abs=1e-13),
        "disagreement": pytest.approx(float(sum(different) / max(1, len(different)))),
        "mutual_information": pytest.approx(reference.mutual_information(z, SEVERAL), abs=1e-13),
        "true_probability_variance": pytest.approx(float(p.var(0, correction=0).mean())),
        "oracle_accuracy": pytest.approx(sum(right) / 6),
    }


def test_a_regression_has_its_variance_and_half_of_it():
    z = drawn(4, 6)
    variance = float(z.var(0, correction=0).mean())
    assert d.diversity(z, drawn(6), NUMBER) == {
        "consistency": pytest.approx(variance),
        "diversity": pytest.approx(variance / 2),
    }


def test_without_labels_what_needs_them_is_left_out():
    assert set(d.diversity(drawn(3, 6, 3))) == {
        "consistency", "diversity", "disagreement", "mutual_information",
    }  # fmt: skip


def test_the_ensemble_gains_its_diversity():
    z = drawn(5, 6, 3)
    each = torch.stack([cross_entropy(row, LABELS) for row in z]).mean()
    gained = d.gain(z).mean()
    torch.testing.assert_close(cross_entropy(d.mean_logits(z), LABELS), each - gained)
    numbers, y = drawn(5, 6), drawn(6, seed=4)
    each = torch.stack([mse_loss(row, y) for row in numbers]).mean()
    twice = 2 * d.gain(numbers, NUMBER).mean()
    torch.testing.assert_close(mse_loss(d.mean_logits(numbers, NUMBER).squeeze(-1), y), each - twice)


def test_two_ways_to_predict_together():
    z = drawn(3, 6, 4)
    torch.testing.assert_close(d.mean_logits(z), z.mean(0))
    torch.testing.assert_close(d.mean_probabilities(z), z.softmax(-1).mean(0))
    torch.testing.assert_close(d.mean_probabilities(z, SEVERAL), z.sigmoid().mean(0))
    geometric = z.log_softmax(-1).mean(0).softmax(-1)
    torch.testing.assert_close(d.mean_logits(z).softmax(-1), geometric)


def test_members_who_are_sure_of_different_classes_hide_all_they_know():
    z = torch.eye(3).reshape(3, 1, 3) * 1e4
    assert float(d.mutual_information(z)) == pytest.approx(math.log(3))
    assert d.diversity(z, torch.tensor([1]))["oracle_accuracy"] == 1.0
    assert float(d.disagreement(z)) == 1.0


@pytest.mark.parametrize("problem", [SINGLE, SEVERAL])
def test_equal_members_have_nothing_to_tell(problem: str):
    z = drawn(1, 6, 3, scale=5).expand(4, -1, -1)
    found = d.diversity(z, None, problem)
    assert all(0 <= value < 1e-12 for value in found.values())


def test_order_of_members_changes_nothing():
    z = drawn(4, 6, 3)
    one, other = d.diversity(z, LABELS), d.diversity(z[[3, 1, 0, 2]], LABELS)
    assert one == pytest.approx(other)


def test_tokens_that_do_not_count_are_left_out():
    z = drawn(3, 2, 4, 5)
    labels = torch.tensor([[1, 4, -100, 0], [-100, 2, -100, -100]])
    mask = labels != -100
    kept = torch.stack([z[:, 0, 0], z[:, 0, 1], z[:, 0, 3], z[:, 1, 1]], dim=1)
    assert d.diversity(z, labels, SINGLE, mask) == pytest.approx(
        d.diversity(kept, torch.tensor([1, 4, 0, 2]))
    )


def test_half_precision_is_reported_in_float64():
    z = drawn(3, 6, 3).bfloat16()
    assert d.mean_logits(z).dtype == torch.float64
    assert d.diversity(z, LABELS) == pytest.approx(d.diversity(z.double(), LABELS))


@pytest.mark.parametrize(
    ("labels", "problem", "message"),
    [
        (LABELS[:5], SINGLE, "5 rows of labels for 6 rows of logits; expected one for each"),
        (LABELS - 100, SINGLE, "labels outside 0 to 2; leave rows without a label out by the mask"),
    ],
)
def test_labels_that_do_not_fit(labels: Tensor, problem: str, message: str):
    with pytest.raises(DataError) as caught:
        d.diversity(drawn(3, 6, 3), labels, problem)
    assert str(caught.value) == message


def test_what_a_regression_does_not_have():
    with pytest.raises(DataError, match="a regression has no true class"):
        d.oracle_accuracy(drawn(3, 6), drawn(6), NUMBER)
    with pytest.raises(RecipeError, match="a regression has no entropy"):
        d.mutual_information(drawn(3, 6), NUMBER)
