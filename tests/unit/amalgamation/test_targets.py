"""Routing and targets: against references, and the identity that makes vanilla distillation a gate."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait.amalgamation import targets
from plait.amalgamation.gate import GATES
from plait.amalgamation.label_space import LabelSpace
from plait.amalgamation.objective import OBJECTIVES
from plait.amalgamation.routing import LEAST_MARGIN, route, summary
from plait.errors import DataError, RecipeError
from tests.reference import amalgamation as reference

quick = settings(deadline=None, max_examples=50)


@dataclass(frozen=True)
class Case:
    """Logits of several teachers over an overlapping union, scores of a gate, a student."""

    space: LabelSpace
    logits: list[Tensor]
    scores: Tensor
    student: Tensor

    @property
    def posteriors(self) -> list[Tensor]:
        return [targets.probabilities(z) for z in self.logits]

    @property
    def arrays(self) -> list[object]:
        return [p.double().numpy() for p in self.posteriors]


def space_of(columns: list[list[int]], width: int) -> LabelSpace:
    names = tuple(f"label-{at}" for at in range(width))
    return LabelSpace(names, tuple(map(tuple, columns)), tuple(f"teacher-{at}" for at in range(len(columns))))


@st.composite
def cases(draw: st.DrawFn, teachers: int | None = None) -> Case:
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, width = draw(st.integers(1, 6)), draw(st.integers(2, 6))
    t = teachers or draw(st.integers(1, 4))
    columns = [torch.randint(width, (draw(st.integers(2, 4)),), generator=g).tolist() for _ in range(t)]
    logits = [torch.randn(n, len(own), generator=g) * draw(st.sampled_from([1.0, 8.0])) for own in columns]
    return Case(
        space_of(columns, width),
        logits,
        torch.rand(n, t, generator=g),
        torch.randn(n, width, generator=g),
    )


@given(case=cases(), temperature=st.sampled_from([0.05, 0.2, 1.0, 10.0]))
@quick
def test_targets_equal_their_references(case: Case, temperature: float) -> None:
    routing = route(case.scores, temperature=temperature)
    scores, columns, width = case.scores.double().numpy(), case.space.columns, len(case.space)
    wanted = {
        "hard": reference.hard(case.arrays, scores, columns, width),
        "soft": reference.soft(case.arrays, scores, columns, width, temperature),
        "concat": reference.concat([z.double().numpy() for z in case.logits], columns, width, temperature),
    }
    found = {
        "hard": targets.hard(case.posteriors, routing, case.space),
        "soft": targets.soft(case.posteriors, routing, case.space),
        "concat": targets.concat(case.logits, case.space, temperature=temperature),
    }
    for name, target in found.items():
        torch.testing.assert_close(target.double(), torch.tensor(wanted[name]).double(), rtol=0, atol=1e-5)
        torch.testing.assert_close(target.sum(1), torch.ones(len(target)), rtol=0, atol=1e-5)
        assert target.dtype == torch.float32


@given(case=cases())
@quick
def test_vanilla_distillation_is_the_soft_energy_gate(case: Case) -> None:
    """softmax(concat z) = Σ_i α_i pad(softmax z_i) with α = softmax(energy), and so are the losses."""
    energies = torch.stack([GATES["energy"].function(z) for z in case.logits], 1)
    target = targets.soft(case.posteriors, route(energies, temperature=1.0), case.space)
    torch.testing.assert_close(target, targets.concat(case.logits, case.space), rtol=0, atol=2e-6)
    columns = [torch.tensor(own) for own in case.space.columns]
    vkd = OBJECTIVES["vkd"].function(case.student, case.logits, columns)["divergence"]
    muka = OBJECTIVES["muka"].function(case.student, target, torch.ones(len(target)))["divergence"]
    torch.testing.assert_close(vkd, muka, rtol=1e-4, atol=1e-5)


@given(case=cases(), temperature=st.sampled_from([0.2, 1.0]))
@quick
def test_routing_equals_its_reference(case: Case, temperature: float) -> None:
    routing = route(case.scores, temperature=temperature)
    rows = case.scores.tolist()
    assert routing.choice.tolist() == [reference.choice(row) for row in rows]
    assert routing.margin.tolist() == pytest.approx([reference.margin(row) for row in rows], abs=1e-6)
    wanted = [reference.softmax([s / temperature for s in row]) for row in rows]
    torch.testing.assert_close(routing.weights, torch.tensor(wanted), rtol=0, atol=1e-6)


@given(case=cases(teachers=3), seed=st.integers(0, 100))
@quick
def test_the_order_of_teachers_and_texts_does_not_matter(case: Case, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    teachers = torch.randperm(3, generator=g).tolist()
    texts = torch.randperm(len(case.scores), generator=g)
    moved_space = space_of([list(case.space.columns[t]) for t in teachers], len(case.space))
    moved_scores = case.scores[texts][:, teachers]
    moved_posteriors = [case.posteriors[t][texts] for t in teachers]
    for make in (targets.hard, targets.soft):
        wanted = make(case.posteriors, route(case.scores, temperature=0.2), case.space)[texts]
        found = make(moved_posteriors, route(moved_scores, temperature=0.2), moved_space)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@given(case=cases(teachers=1))
@quick
def test_one_teacher_teaches_everything(case: Case) -> None:
    routing = route(case.scores, temperature=0.2)
    assert torch.equal(routing.margin, torch.ones(len(case.scores)))
    assert torch.equal(routing.weights, torch.ones(len(case.scores), 1))
    alone = targets.single(0, case.posteriors[0], case.space)
    for make in (targets.hard, targets.soft):
        torch.testing.assert_close(make(case.posteriors, routing, case.space), alone)
    torch.testing.assert_close(targets.concat(case.logits, case.space), alone, rtol=0, atol=1e-6)


@given(case=cases())
@quick
def test_nothing_is_changed(case: Case) -> None:
    before = [*(z.clone() for z in case.logits), case.scores.clone()]
    posteriors = case.posteriors
    copies = [p.clone() for p in posteriors]
    routing = route(case.scores, temperature=0.2)
    targets.hard(posteriors, routing, case.space)
    targets.soft(posteriors, routing, case.space)
    targets.concat(case.logits, case.space)
    now = [*case.logits, case.scores]
    assert all(torch.equal(a, b) for a, b in zip([*before, *copies], [*now, *posteriors], strict=True))


def test_equal_scores_choose_the_first_and_weigh_alike() -> None:
    routing = route(torch.tensor([[0.5, 0.5]]), temperature=0.2)
    assert routing.choice.tolist() == [0]
    assert routing.margin.tolist() == pytest.approx([LEAST_MARGIN])
    assert routing.weights.tolist() == [[0.5, 0.5]]


def test_extreme_scores_are_routed() -> None:
    routing = route(torch.tensor([[1e30, -1e30], [1e30, 1e30]]), temperature=0.01)
    assert routing.weights.tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_posteriors_of_one_pass_of_a_temperature_and_of_many_passes() -> None:
    logits, mean = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.6, 0.4]])
    assert torch.equal(targets.probabilities(logits), torch.softmax(logits, -1))
    assert torch.equal(targets.probabilities(logits, temperature=2.0), torch.softmax(logits / 2, -1))
    assert torch.equal(targets.probabilities(logits, mean, posterior="mean", temperature=2.0), mean)
    with pytest.raises(ValueError, match="needs the Monte Carlo mean"):
        targets.probabilities(logits, posterior="mean")


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(RecipeError, match=r"gate temperature .*: expected a number above 0"):
        route(torch.zeros(1, 2), temperature=temperature)


def test_scores_that_are_no_numbers_are_named() -> None:
    scores = torch.tensor([[0.0, float("nan")], [0.0, float("inf")], [0.0, 1.0]])
    with pytest.raises(DataError, match="not finite for teacher 2 on 2 texts"):
        route(scores, temperature=0.2)


def test_summary_says_who_taught_what() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.3], [0.2, 0.7], [0.5, 0.4]])
    known = torch.tensor([[True, True, False], [False, True, True]])
    found = summary(route(scores, temperature=0.2), ["a", "b"], torch.tensor([0, 2, 1, -1]), known)
    assert found["texts"] == 4
    assert found["teachers"]["a"]["share"] == 0.75
    assert found["teachers"]["b"]["share"] == 0.25
    assert found["teachers"]["a"]["mean_weight"] + found["teachers"]["b"]["mean_weight"] == pytest.approx(1)
    assert found["margin"]["counts"] == [0, 1, 0, 0, 0, 2, 0, 0, 1, 0]
    assert found["margin"]["edges"][0] == 0.0
    assert found["margin"]["edges"][-1] == 1.0
    assert found["routing"] == {"labelled": 3, "accuracy": pytest.approx(2 / 3, abs=1e-6)}
    json.dumps(found)


def test_summary_without_labels_and_without_texts() -> None:
    scores = torch.tensor([[3.0, -9.0]])
    found = summary(route(scores, temperature=1.0), ["a", "b"])
    assert "routing" not in found
    assert found["margin"]["edges"][-1] == pytest.approx(12, abs=1e-4)
    assert found["margin"]["counts"][-1] == 1
    none = summary(route(torch.zeros(0, 2), temperature=1.0), ["a", "b"])
    assert none["texts"] == 0
    assert json.loads(json.dumps(none))["teachers"]["a"] == {"share": 0.0, "mean_weight": 0.0}
    known = torch.ones(2, 1) > 0
    unknown = summary(route(scores, temperature=1.0), ["a", "b"], torch.tensor([-1]), known)
    assert unknown["routing"] == {"labelled": 0, "accuracy": None}


def test_with_unequal_numbers_of_labels_an_energy_gate_routes_better() -> None:
    """Why gates are offered: a teacher with two labels guesses more surely than one with eight knows."""
    g, truth = torch.Generator().manual_seed(0), torch.arange(2000) % 10
    outputs = []
    for low, high in ((0, 2), (2, 10)):
        logits = torch.randn(2000, high - low, generator=g) * 2
        own = (truth >= low) & (truth < high)
        logits[own, truth[own] - low] += 5
        outputs.append(logits)
    right = (truth >= 2).long()

    def accuracy(name: str) -> float:
        scores = torch.stack([GATES[name].function(z) for z in outputs], 1)
        return float((route(scores, temperature=1.0).choice == right).double().mean())

    assert accuracy("energy") > accuracy("entropy") + 0.1


@given(case=cases())
@quick
def test_unification_is_the_inner_half_of_vanilla_distillation(case: Case) -> None:
    """KL(p ‖ q) = KL(α ‖ mass of q on each L_i) + Σ_i α_i KL(p_i ‖ q_i) for disjoint labels; UHC is the last KLs."""
    sizes = [z.shape[1] for z in case.logits]
    places = torch.arange(sum(sizes)).split(sizes)
    student = torch.randn(1, sum(sizes), generator=torch.Generator().manual_seed(sum(sizes)))
    logits = [z[:1] for z in case.logits]
    vkd = OBJECTIVES["vkd"].function(student, logits, places)["divergence"]
    energies = torch.stack([torch.logsumexp(z, -1) for z in logits], -1)
    shares = torch.softmax(energies, -1)[0]
    masses = torch.stack([torch.logsumexp(student[:, own], -1) for own in places], -1)
    outer = (shares * (torch.log_softmax(energies, -1) - torch.log_softmax(masses, -1))[0]).nan_to_num().sum()
    uhc = OBJECTIVES["uhc"].function
    inner = torch.stack(
        [uhc(student, [z], [own])["divergence"] for z, own in zip(logits, places, strict=True)]
    )
    torch.testing.assert_close(vkd, outer + (shares * inner).sum(), rtol=1e-4, atol=1e-5)
    together = uhc(student, logits, places)["divergence"]
    torch.testing.assert_close(together, inner.sum(), rtol=1e-5, atol=1e-6)
