"""Calibration without labels, warnings about labels that behave differently, and adapters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plait.amalgamation import adapters
from plait.amalgamation.label_space import disagreement, union
from plait.amalgamation.objectives.cfl import discrepancy
from plait.amalgamation.routing import standardize, temperature_from_passes
from plait.errors import RecipeError
from tests.reference import amalgamation as reference

quick = settings(deadline=None, max_examples=25)


@given(seed=st.integers(0, 1000), temperature=st.sampled_from([0.3, 1.0, 2.5]))
@quick
def test_the_temperature_that_made_the_mean_is_found(seed: int, temperature: float) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, 4, generator=g)
    found = temperature_from_passes(logits, torch.softmax(logits / temperature, -1))
    assert found == pytest.approx(temperature, rel=1e-4)


def test_the_temperature_is_that_of_a_fine_search() -> None:
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(8, 3, generator=g) * 3
    mean = torch.softmax(logits + torch.randn(16, 8, 3, generator=g) * 2, -1).mean(0)
    wanted = reference.temperature_from_passes(logits.double().numpy(), mean.double().numpy())
    assert temperature_from_passes(logits, mean) == pytest.approx(wanted, rel=2e-3)
    shifted = temperature_from_passes(logits + 40, mean)
    assert shifted == pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize(
    ("logits", "mean", "wanted"),
    [
        (torch.zeros(3, 2), torch.full((3, 2), 0.5), 1.0),
        (torch.full((3, 2), 5.0), torch.tensor([[0.3, 0.7]]).repeat(3, 1), 1.0),
        (torch.zeros(0, 2), torch.zeros(0, 2), 1.0),
        (torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), 0.01),
        (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]), 100.0),
        (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.1, 0.9]]), 100.0),
        (torch.tensor([[1e30, 0.0]]), torch.tensor([[1.0, 0.0]]), None),
    ],
)
def test_the_temperature_is_safe(logits: torch.Tensor, mean: torch.Tensor, wanted: float | None) -> None:
    found = temperature_from_passes(logits, mean)
    assert 0.01 * 0.999 <= found <= 100 * 1.001
    assert wanted is None or found == pytest.approx(wanted, rel=1e-3)


def test_standardized_scores_have_mean_0_and_spread_1() -> None:
    scores = (
        torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0, 0.0]) + 5
    )
    before = scores.clone()
    found = standardize(scores)
    torch.testing.assert_close(found.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.std(0, correction=0)[:2], torch.ones(2).double())
    assert bool((found[:, 2] == 0).all())
    assert torch.equal(scores, before)
    assert standardize(scores[:1]).tolist() == [[0.0, 0.0, 0.0]]


SHARED = union({"a": ["World", "Sports", "Business"], "b": ["Business", "Sci/Tech"]})


def overlapping(seed: int, *, same: bool) -> list[torch.Tensor]:
    """Four kinds of text; each teacher is sure of its own kinds and guesses, less surely, at the others.

    Where they mean the same, b's Business is a's; where not, b's is the texts that a calls World.
    """
    g = torch.Generator().manual_seed(seed)
    kinds = torch.randint(4, (400,), generator=g)
    a = torch.randn(400, 3, generator=g)
    a[torch.arange(400), kinds.clamp(max=2)] += torch.where(kinds < 3, 5.0, 0.0)
    b = torch.randn(400, 2, generator=g)
    b[kinds == (2 if same else 0), 0] += 5
    b[kinds == 3, 1] += 5
    if not same:
        b[kinds == 2, 1] += 2
    return [torch.softmax(z, -1) for z in (a, b)]


@pytest.mark.parametrize("seed", range(5))
def test_labels_that_mean_the_same_are_left_in_peace(seed: int) -> None:
    assert disagreement(overlapping(seed, same=True), SHARED, SHARED.teachers) == []


@pytest.mark.parametrize("seed", range(5))
def test_labels_that_mean_something_else_are_pointed_out(seed: int) -> None:
    [warning] = disagreement(overlapping(seed, same=False), SHARED, SHARED.teachers)
    assert "a and b both have the label 'Business' but use it for different texts" in warning
    assert "--rename 'b.Business=NAME'" in warning


def test_few_texts_are_no_evidence() -> None:
    few = [p[:15] for p in overlapping(0, same=False)]
    assert disagreement(few, SHARED, SHARED.teachers) == []


def test_teachers_that_give_every_text_the_label_agree() -> None:
    always = [torch.tensor([[0.01, 0.01, 0.98]]).repeat(100, 1), torch.tensor([[0.99, 0.01]]).repeat(100, 1)]
    assert disagreement(always, SHARED, SHARED.teachers) == []


def test_disjoint_labels_have_nothing_to_disagree_about() -> None:
    space = union({"a": ["x", "y"], "b": ["v", "w"]})
    assert disagreement([torch.rand(50, 2), torch.rand(50, 2)], space, space.teachers) == []


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"),
    [
        (3, 3, [1, 2, 3]),
        (3, 12, [4, 8, 12]),
        (12, 3, [1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]),
        (6, 4, [1, 1, 2, 3, 3, 4]),
        (1, 5, [5]),
    ],
)
def test_layers_at_the_same_depth(student: int, teacher: int, wanted: list[int]) -> None:
    assert adapters.same_depth(student, teacher) == wanted


@pytest.mark.parametrize("name", ["muka", "vkd", "uhc"])
def test_plain_objectives_train_nothing_else(name: str) -> None:
    assert adapters.build(name, 8, 2, [4]) is None


def test_adapters_fit_widths_and_depths() -> None:
    alignment = adapters.build("dfa", 8, 2, [4, 6])
    assert isinstance(alignment, nn.Module)
    assert [tuple(one.shape) for one in alignment(torch.zeros(5, 2, 8))] == [(5, 2, 4), (5, 2, 6)]
    space = adapters.build("cfl", 64, 2, [4, 6])
    assert isinstance(space, nn.Module)
    own, theirs, rebuilt = space(torch.zeros(5, 64), [torch.zeros(5, 4), torch.zeros(5, 6)])
    assert own.shape == (5, 16)
    assert [tuple(one.shape) for one in theirs] == [(5, 16), (5, 16)]
    assert [tuple(one.shape) for one in rebuilt] == [(5, 4), (5, 6)]


def test_adapters_repeat_with_the_seed_and_unknown_objectives_are_refused() -> None:
    torch.manual_seed(5)
    first = adapters.build("dfa", 4, 1, [3])
    torch.manual_seed(5)
    second = adapters.build("dfa", 4, 1, [3])
    assert first is not None
    assert second is not None
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(RecipeError, match="unknown objective 'dfb'"):
        adapters.build("dfb", 4, 1, [3])


def test_discrepancy_is_0_for_equal_batches_and_grows_with_distance() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(20, 4, generator=g))
    near, far = torch.nn.functional.normalize(x + 0.1), torch.nn.functional.normalize(x + 5)
    assert abs(float(discrepancy(x, x))) < 1e-5
    assert 0 < float(discrepancy(x, near)) < float(discrepancy(x, far))
