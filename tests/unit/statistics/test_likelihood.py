"""Cotangents at the logits: their squares add up to the covariance of the score, for every head."""

from __future__ import annotations

import pytest
import torch

from plait.errors import DataError, RecipeError
from plait.statistics.batch import Batch
from plait.statistics.likelihood import (
    Cotangents,
    Head,
    Logits,
    categorical_root,
    residual,
    sample,
    signed_root,
    square_root,
    width,
)

CATEGORICAL = (Head.CLASS, Head.TOKEN, Head.NEXT, Head.SPAN)


def logits(rows=2, values=4, scale=1.0):
    draw = torch.Generator().manual_seed(0)
    return scale * torch.randn(rows, values, generator=draw, dtype=torch.float64)


def covariance(head, z):
    """Cov of the gradient of log p at the logits, all variables in one vector."""
    if head in CATEGORICAL:
        blocks = [torch.diag(p) - torch.outer(p, p) for p in z.softmax(1)]
    elif head is Head.MULTI_LABEL:
        blocks = [torch.diag(p * (1 - p)) for p in z.sigmoid()]
    else:
        blocks = [torch.eye(z.shape[1], dtype=z.dtype) for _ in z]
    return torch.block_diag(*blocks)


@pytest.mark.parametrize("head", Head)
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_columns_are_a_square_root_of_the_covariance(head, scale):
    z = logits(scale=scale)
    columns = square_root(head, z).flatten(1)
    assert len(columns) == width(head, z)
    torch.testing.assert_close(columns.T @ columns, covariance(head, z), rtol=0, atol=1e-15)


def test_two_classes_need_one_column():
    z = logits(1, 2)
    p = z.softmax(1)[0]
    column = categorical_root(z)[0, :, 0]
    torch.testing.assert_close(column, (p[0] * p[1]).sqrt() * torch.tensor([1.0, -1.0]).double())


@pytest.mark.parametrize(
    "z", [[800.0, 0.0, 0.0], [0.0, 800.0, 0.0], [0.0, -800.0, 0.0], [0.0, 0.0, -2000.0], [40.0, 0.0, -40.0]]
)
def test_probabilities_may_underflow(z):
    z = torch.tensor([z], dtype=torch.float64)
    root = categorical_root(z)[0]
    p = z.softmax(1)[0]
    assert root.isfinite().all()
    torch.testing.assert_close(root @ root.T, torch.diag(p) - torch.outer(p, p), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("head", Head)
def test_random_signs_are_right_on_average(head):
    z = logits(2, 3)
    draw = torch.Generator().manual_seed(1)
    drawn = signed_root(head, z.repeat(20_000, 1), draw).reshape(20_000, -1)
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), covariance(head, z), rtol=0, atol=0.02)


@pytest.mark.parametrize("head", CATEGORICAL)
def test_random_signs_are_a_combination_of_the_columns(head):
    z = logits(2, 4)
    signed = signed_root(head, z, torch.Generator().manual_seed(2)).flatten()
    columns = square_root(head, z).flatten(1)
    signs = torch.linalg.lstsq(columns.T, signed).solution
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs))


@pytest.mark.parametrize("head", Head)
def test_sampled_labels_have_the_score_of_the_model(head):
    z = logits(2, 3)
    draw = torch.Generator().manual_seed(3)
    many = z.repeat(20_000, 1)
    scores = residual(head, many, sample(head, many, draw)).reshape(20_000, -1)
    torch.testing.assert_close(scores.mean(0), torch.zeros(6).double(), rtol=0, atol=0.03)
    torch.testing.assert_close(scores.T @ scores / len(scores), covariance(head, z), rtol=0, atol=0.03)


def test_the_residual_is_the_gradient_of_the_loss():
    z = logits(2, 3).requires_grad_()
    y = torch.tensor([2, 0])
    (wanted,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, y, reduction="sum"), z)
    torch.testing.assert_close(residual(Head.CLASS, z.detach(), y), wanted)
    assert not residual(Head.TOKEN, z.detach(), torch.tensor([-100, 0]))[0].any()


def one_batch(count=2, tokens=3, **targets):
    mask = torch.ones(count, tokens, dtype=torch.bool)
    return Batch({"input_ids": mask.long()}, targets, mask, tuple(range(count)))


def passes(head, values, batch, **options):
    return list(Cotangents(**options)(Logits(head, values), batch))


@pytest.mark.parametrize(("classes", "expected"), [(2, 1), (17, 16), (18, 1), (200, 1)])
def test_many_classes_take_one_pass(classes, expected):
    found = passes(Head.CLASS, torch.randn(2, 1, classes), one_batch(), labels="exact")
    assert len(found) == expected


def test_an_example_decides_for_itself_how_many_passes_it_needs():
    labels = torch.full((2, 12), -100)
    labels[0, :3], labels[1] = 0, 0  # three tokens: six columns; twelve: more than sixteen, so random signs
    batch = one_batch(2, 12, labels=labels)
    found = torch.stack(passes(Head.TOKEN, torch.randn(2, 12, 3), batch, labels="exact"))
    assert found.shape[0] == 6
    assert found[:, 0, :3].abs().sum((1, 2)).min() > 0
    assert not found[:, 0, 3:].any()
    assert found[0, 1].any()
    assert not found[1:, 1].any()


def test_answers_outside_the_real_tokens_do_not_count():
    mask = torch.tensor([[True, True, False]])
    targets = {"start_positions": torch.tensor([2]), "end_positions": torch.tensor([1])}
    batch = Batch({"input_ids": mask.long()}, targets, mask, (0,))
    (found,) = passes(Head.SPAN, torch.zeros(1, 2, 3), batch)
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0.0, 0.0], [0.5, -0.5, 0.0]]]))


@pytest.mark.parametrize(
    ("head", "targets", "message"),
    [
        (Head.CLASS, {}, "no labels in the data; give them, or use labels sampled or exact"),
        (Head.SPAN, {}, "no start_positions and end_positions in the data"),
        (Head.CLASS, {"labels": torch.tensor([0, 7])}, r"labels \[7\] are outside the head's range 0 to 3"),
        (Head.CLASS, {"labels": torch.tensor([0.0, 1.0])}, "expected whole numbers from 0 to 3"),
        (Head.REGRESSION, {"labels": torch.tensor([0.0, torch.nan])}, "labels hold NaN or Inf"),
    ],
)
def test_labels_that_cannot_be_are_refused(head, targets, message):
    with pytest.raises(DataError, match=message):
        passes(head, torch.zeros(2, 1, 4), one_batch(**targets))


def test_unknown_kinds_of_labels_are_refused():
    with pytest.raises(RecipeError, match=r"unknown labels 'sample'.*did you mean 'sampled'"):
        Cotangents("sample")
