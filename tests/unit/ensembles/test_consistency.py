"""The consistency regularisers against their definitions, their identities, and at their edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from plait.ensembles.consistency import CONSISTENCIES, ensemble, none, pairwise, rate, spread
from plait.ensembles.divergences import divergence
from plait.errors import RecipeError
from tests.reference import ensembles as reference

PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")
quick = settings(deadline=None, max_examples=30)


def drawn(*shape: int, seed: int = 0, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def grad(value: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(value, at, retain_graph=True)[0]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("members", [1, 2, 5])
def test_both_are_their_definitions(problem: str, members: int):
    z = drawn(members, 4, 1 if problem == "regression" else 3, seed=members)
    assert float(ensemble(z, problem)) == pytest.approx(reference.to_the_mean(z, problem), abs=1e-13)
    assert float(pairwise(z, problem)) == pytest.approx(reference.over_pairs(z, problem), abs=1e-13)


@quick
@given(st.sampled_from(PROBLEMS), st.integers(2, 8), st.integers(0, 1000))
def test_pairs_and_mean_are_one_regulariser(problem: str, members: int, seed: int):
    """The sum over real pairs, differentiated by autograd, against 2M/(M−1) times the mean's."""
    z = drawn(members, 3, 4, seed=seed).requires_grad_()
    pairs = [(i, j) for i in range(members) for j in range(i)]
    all_pairs = torch.stack(
        [divergence(z[i], z[j], problem) + divergence(z[j], z[i], problem) for i, j in pairs]
    ).mean()
    factor = 2 * members / (members - 1)
    for value in (pairwise(z, problem), factor * ensemble(z, problem)):
        torch.testing.assert_close(value, all_pairs, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(grad(value, z), grad(all_pairs, z), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_gradient_goes_through_both_arguments(problem: str):
    z = drawn(3, 2, 3).requires_grad_()
    middle = z.mean(0).expand_as(z)
    both = (divergence(z, middle, problem) + divergence(middle, z, problem)).mean()
    held = middle.detach()
    one = (divergence(z, held, problem) + divergence(held, z, problem)).mean()
    torch.testing.assert_close(ensemble(z, problem), both)
    torch.testing.assert_close(grad(ensemble(z, problem), z), grad(both, z))
    torch.testing.assert_close(ensemble(z, problem, detach=True), one)
    torch.testing.assert_close(grad(ensemble(z, problem, detach=True), z), grad(one, z))


def test_gradients_are_those_of_finite_differences():
    z = drawn(3, 2, 4).requires_grad_()
    for problem in PROBLEMS:
        assert torch.autograd.gradcheck(lambda t, p=problem: ensemble(t, p), (z,))
        assert torch.autograd.gradcheck(lambda t, p=problem: pairwise(t, p), (z,))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", ["ensemble", "pairwise"])
def test_one_member_has_nobody_to_disagree_with(name: str, problem: str):
    z = drawn(1, 5, 3, dtype=torch.float32, scale=30).requires_grad_()
    value = CONSISTENCIES[name].function(z, problem)
    assert float(value.detach()) == 0.0
    assert bool((grad(value, z) == 0).all())


@pytest.mark.parametrize("problem", PROBLEMS)
def test_equal_members_give_nothing_and_order_changes_nothing(problem: str):
    z = drawn(4, 5, 3)
    assert float(ensemble(z[:1].expand_as(z), problem)) == pytest.approx(0, abs=1e-15)
    torch.testing.assert_close(ensemble(z, problem), ensemble(z[[2, 0, 3, 1]], problem))


def test_regression_is_the_variance_with_or_without_a_last_axis():
    z = drawn(4, 6)
    torch.testing.assert_close(ensemble(z, "regression"), z.var(0, correction=0).mean())
    torch.testing.assert_close(ensemble(z.unsqueeze(-1), "regression"), ensemble(z, "regression"))


@pytest.mark.parametrize("problem", PROBLEMS[:2])
def test_tokens_that_do_not_count_do_not_count(problem: str):
    z = drawn(3, 2, 4, 5)
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0]])
    kept = torch.stack([z[:, 0, 0], z[:, 0, 1], z[:, 0, 3], z[:, 1, 1]], dim=1)
    for name in ("ensemble", "pairwise"):
        function = CONSISTENCIES[name].function
        torch.testing.assert_close(function(z, problem, mask), function(kept, problem))
        assert float(function(z, problem, torch.zeros_like(mask))) == 0.0


def test_nan_in_padding_reaches_neither_value_nor_gradient():
    z = drawn(3, 2, 4, 5)
    z[:, 1, 2:] = math.nan
    z.requires_grad_()
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    value = ensemble(z, mask=mask)
    assert math.isfinite(float(value.detach()))
    assert bool(grad(value, z).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype):
    z = drawn(4, 5, 3, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = pairwise(z)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), pairwise(z.double()), rtol=1e-5, atol=1e-6)
    assert grad(value, z).dtype == dtype


@pytest.mark.parametrize("problem", PROBLEMS)
def test_members_that_agree_to_many_digits_keep_their_disagreement(problem: str):
    """Differences of 1e-3 in logits of 30, members shifted against one another: 1e-7 of the size, found to 1 %."""
    z = drawn(1, 6, 3, scale=3) + drawn(4, 6, 3, seed=1, scale=1e-2)
    if problem == "single_label_classification":
        z = z + torch.tensor([0.0, 40.0, -40.0, 1000.0]).reshape(4, 1, 1)
    z = z.float()
    wanted = reference.to_the_mean(z, problem)
    assert float(ensemble(z, problem)) == pytest.approx(wanted, rel=1e-2)


def test_extreme_logits_stay_finite():
    z = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]]).requires_grad_()
    for problem in PROBLEMS:
        value = ensemble(z, problem)
        assert math.isfinite(float(value.detach()))
        assert bool(grad(value, z).isfinite().all())


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_the_ensemble_gains_is_what_members_disagree(problem: str):
    """Cross-entropy of the ensemble = mean cross-entropy − D; both differ from R by the other half of it."""
    z = drawn(4, 5, 1 if problem == "regression" else 3)
    middle = z.mean(0)
    if problem == "regression":
        y = drawn(5, 1, seed=9)
        losses = [((row - y) ** 2 / 2).sum(-1) for row in (*z, middle)]
    elif problem == "multi_label_classification":
        y = (drawn(5, 3, seed=9) > 0).double()
        losses = [binary_cross_entropy_with_logits(row, y, reduction="none").sum(-1) for row in (*z, middle)]
    else:
        y = torch.arange(5) % 3
        losses = [cross_entropy(row, y, reduction="none") for row in (*z, middle)]
    gained = divergence(middle.expand_as(z), z, problem).mean(0)
    torch.testing.assert_close(losses[-1], torch.stack(losses[:-1]).mean(0) - gained)
    other = divergence(z, middle.expand_as(z), problem).mean(0)
    torch.testing.assert_close(spread(z, problem), gained + other)


@pytest.mark.parametrize("members", [2, 3, 4, 8])
def test_rates_convert_exactly(members: int):
    z = drawn(members, 4, 3)
    alpha = rate("pairwise", 1.5, members)
    assert alpha == pytest.approx(1.5 * 2 * members / (members - 1))
    torch.testing.assert_close(alpha * ensemble(z), 1.5 * pairwise(z))
    assert rate("ensemble", alpha, members, to="pairwise") == pytest.approx(1.5)
    assert rate("ensemble", 2.0, members) == rate("pairwise", 2.0, members, to="pairwise") == 2.0


def test_rates_of_nothing_are_nothing():
    assert rate("none", 3.0, 4) == rate("ensemble", 3.0, 4, to="none") == 0.0
    assert rate("pairwise", 3.0, 1) == rate("ensemble", 3.0, 1, to="pairwise") == 0.0
    assert float(none(drawn(2, 3, 4))) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pairs", 1.0, 2), "unknown consistency 'pairs' (did you mean 'pairwise'? known: ensemble, none, pairwise)"),
        (("ensemble", -1.0, 2), "alpha is -1.0; expected a number, 0 or greater"),
        (("ensemble", math.nan, 2), "alpha is nan; expected a number, 0 or greater"),
        (("ensemble", 1.0, 0), "members is 0; expected 1 or more"),
    ],
)  # fmt: skip
def test_rates_that_make_no_sense(arguments: tuple[str, float, int], message: str):
    with pytest.raises(RecipeError) as caught:
        rate(*arguments)
    assert str(caught.value) == message


def test_problem_types_are_known_ones():
    with pytest.raises(RecipeError, match="unknown problem type 'softmax'"):
        ensemble(drawn(2, 3, 4), "softmax")


def test_the_registry_says_what_there_is():
    assert list(CONSISTENCIES) == ["ensemble", "none", "pairwise"]
    assert CONSISTENCIES["ensemble"].options["detach"].default is False
    assert CONSISTENCIES["pairwise"].inputs == ("logits", "problem", "mask")
    assert CONSISTENCIES["ensemble"].facts["paper"] == "arXiv:2204.06625"


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_pairs_with_the_ensemble_held_still(problem: Any) -> None:
    logits = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits.requires_grad_()
    pairs, whole = pairwise(logits, problem, detach=True), ensemble(logits, problem, detach=True)
    torch.testing.assert_close(pairs, whole * 8 / 3)
    torch.testing.assert_close(pairs, pairwise(logits, problem))
    (held,), (free,) = (torch.autograd.grad(r, logits) for r in (pairs, pairwise(logits, problem)))
    assert not torch.allclose(held, free)
    torch.testing.assert_close(held, torch.autograd.grad(whole, logits)[0] * 8 / 3)
