"""What every registered gate promises: its reference, its manners, and that order and constants do not matter."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait.amalgamation import gates
from plait.amalgamation.gate import GATES, INPUTS, GateEntry
from plait.amalgamation.neighbours import nearest
from plait.errors import DataError
from tests.reference.amalgamation import GATES as REFERENCES

quick = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHIFT_FREE = {"entropy", "mahalanobis"}  # gates of logits to which a constant added to all of them is nothing


@dataclass(frozen=True)
class Case:
    """One teacher's outputs on n texts."""

    logits: Tensor
    mean: Tensor
    expected_entropy: Tensor
    features: Tensor
    labels: Tensor
    known: Tensor
    base: Tensor
    near: Tensor
    drift: Tensor
    tokens: Tensor
    starts: Tensor
    response: Tensor
    layers: Tensor

    def call(self, gate: GateEntry, **options: Any) -> Tensor:
        return gate.function(**{name: getattr(self, name) for name in gate.inputs}, **options)

    def rows(self, order: Tensor) -> Case:
        moved = ("logits", "mean", "expected_entropy", "features", "labels", "base", "response", "layers")
        places = order.argsort()
        words = [self.tokens[self.starts[at] : self.starts[at + 1]] for at in order.tolist()]
        ends = torch.tensor([0, *(len(w) for w in words)]).cumsum(0)
        told = {name: getattr(self, name)[order] for name in moved}
        return replace(self, **told, near=places[self.near[order]], tokens=torch.cat(words), starts=ends)


def entropies(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


def made(seed: int, n: int, labels: int, width: int, loudness: float) -> Case:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, labels, generator=g) * loudness
    passes = torch.softmax(logits + torch.randn(5, n, labels, generator=g), -1)
    union = labels + 2
    sizes = torch.randint(0, 4, (n,), generator=g)
    base = torch.randn(n, width, generator=g) + logits[:, -1:]
    return Case(
        logits=logits,
        mean=passes.mean(0),
        expected_entropy=entropies(passes).mean(0),
        features=torch.randn(n, width, generator=g) + logits[:, :1],
        labels=torch.randint(-1, union, (n,), generator=g),
        known=torch.rand(union, generator=g) < 0.5,
        base=base,
        near=nearest(base),
        drift=torch.rand(9, generator=g) * (torch.rand(9, generator=g) < 0.7),
        tokens=torch.randint(0, 9, (int(sizes.sum()),), generator=g),
        starts=torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)]),
        response=torch.randn(n, 3, generator=g).log_softmax(-1),
        layers=torch.randn(n, 3, width, generator=g) + logits[:, :1, None],
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return made(
        draw(st.integers(0, 2**31)),
        draw(st.integers(2, 12)),
        draw(st.integers(2, 7)),
        draw(st.integers(1, 5)),
        draw(st.sampled_from([0.1, 1.0, 5.0])),
    )


@pytest.mark.parametrize("name", GATES)
@given(case=cases())
@quick
def test_equals_its_reference(name: str, case: Case) -> None:
    gate = GATES[name]
    exact = {"labels": case.labels.tolist(), "known": case.known.tolist()}
    arrays = {key: getattr(case, key).double().numpy() for key in INPUTS if key not in exact}
    wanted = REFERENCES[name](**arrays, **exact)
    torch.testing.assert_close(case.call(gate), torch.tensor(wanted).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", GATES)
@given(case=cases(), seed=st.integers(0, 1000))
@quick
def test_texts_in_another_order_keep_their_scores(name: str, case: Case, seed: int) -> None:
    order = torch.randperm(len(case.logits), generator=torch.Generator().manual_seed(seed))
    found = case.rows(order).call(GATES[name])
    torch.testing.assert_close(found, case.call(GATES[name])[order], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", GATES)
@given(case=cases())
@quick
def test_manners(name: str, case: Case) -> None:
    """Inputs stay as they were, one finite score a text, and asking twice changes nothing."""
    gate = GATES[name]
    before = {key: getattr(case, key).clone() for key in INPUTS}
    found = case.call(gate)
    assert all(torch.equal(before[key], getattr(case, key)) for key in INPUTS)
    assert found.shape == (len(case.logits),)
    assert found.dtype == torch.float64
    assert bool(torch.isfinite(found).all())
    assert torch.equal(found, case.call(gate))


@pytest.mark.parametrize("name", sorted(SHIFT_FREE))
@given(case=cases(), shift=st.sampled_from([-50.0, 3.0, 100.0]))
@quick
def test_a_constant_on_all_logits_changes_nothing(name: str, case: Case, shift: float) -> None:
    exact = replace(case, logits=(case.logits * 64).round() / 64)
    moved = replace(exact, logits=exact.logits + shift)
    torch.testing.assert_close(moved.call(GATES[name]), exact.call(GATES[name]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["muka", "entropy", "bald", "oracle"])
@given(case=cases())
@quick
def test_normalised_gates_lie_between_0_and_1(name: str, case: Case) -> None:
    found = case.call(GATES[name])
    assert bool(((found >= 0) & (found <= 1)).all())


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("size", [0.0, 1e4, 1e30])
def test_extreme_and_flat_outputs_give_finite_scores(name: str, size: float) -> None:
    logits = torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]) * size
    mean = torch.softmax(logits, -1)
    flat, empty = torch.zeros(3, 4), torch.zeros(4, dtype=torch.long)
    near = torch.tensor([[1, 2], [0, 2], [0, 1]])
    case = Case(
        logits, mean, entropies(mean), flat, torch.tensor([-1, 0, 3]), torch.ones(4) > 0,
        flat, near, torch.zeros(5), empty[:0], empty, flat, flat[:, None],
    )  # fmt: skip
    assert bool(torch.isfinite(case.call(GATES[name])).all())


def test_features_that_overflowed_are_refused() -> None:
    features = torch.tensor([[1.0, float("inf")], [0.0, 1.0]])
    with pytest.raises(DataError, match="mahalanobis: the features of 1 texts are not finite"):
        GATES["mahalanobis"].function(features, torch.eye(2))


def test_a_gate_is_one_file() -> None:
    files = {file.stem for file in Path(gates.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(GATES)


def test_certain_teachers_are_not_ties() -> None:
    """In float32 both would be exactly 1, and the first teacher would be chosen for being first."""
    surer, sure = torch.tensor([[40.0, 0.0]]), torch.tensor([[30.0, 0.0]])
    entropy = GATES["entropy"].function
    assert entropy(surer) > entropy(sure)


def test_every_gate_has_a_reference_and_nothing_else_has() -> None:
    assert set(REFERENCES) == set(GATES)


@pytest.mark.parametrize("name", GATES)
def test_declarations(name: str) -> None:
    gate = GATES[name]
    assert set(gate.inputs) <= set(INPUTS), "an input outside the closed set cannot be supplied"
    assert gate.summary.startswith("Returns")
    assert gate.facts["paper"].startswith("arXiv:")
    assert gate.facts["temperature"] > 0
    assert gate.facts["passes"] is bool({"mean", "expected_entropy"} & set(gate.inputs))
    kept = {"features", "layers"} & set(gate.inputs)
    assert gate.facts["keep"] == (kept.pop() if kept else "none")
    assert set(gate.facts.get("limits", {})) <= set(gate.options)
    text = inspect.getdoc(gate.function) or ""
    assert all(f"{word}:" in text for word in (*gate.inputs, *gate.options)), "something nobody explains"


def worked_by_hand() -> list[tuple[str, dict[str, Tensor], list[float]]]:
    half = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    return [
        ("muka", {"mean": half}, [0.0, 1.0]),
        ("entropy", {"logits": torch.tensor([[3.0, 3.0], [300.0, 0.0]])}, [0.0, 1.0]),
        ("energy", {"logits": torch.tensor([[0.0, 0.0], [5.0, -300.0]])}, [0.693147, 5.0]),
        ("max_logit", {"logits": torch.tensor([[1.0, 2.0], [-3.0, -4.0]])}, [2.0, -3.0]),
        ("bald", {"mean": half, "expected_entropy": torch.tensor([0.0, 0.0])}, [0.0, 1.0]),
        ("bald", {"mean": half, "expected_entropy": torch.tensor([0.693147, 0.0])}, [1.0, 1.0]),
        (
            "oracle",
            {"labels": torch.tensor([0, 1, -1]), "known": torch.tensor([True, False])},
            [1.0, 0.0, 0.0],
        ),
    ]


@pytest.mark.parametrize(("name", "inputs", "wanted"), worked_by_hand())
def test_worked_by_hand(name: str, inputs: dict[str, Tensor], wanted: list[float]) -> None:
    torch.testing.assert_close(
        GATES[name].function(**inputs).float(), torch.tensor(wanted), rtol=0, atol=1e-5
    )


def test_mahalanobis_knows_its_own_texts() -> None:
    """Two clusters that the teacher names for sure, and one far away about which it wavers."""
    g = torch.Generator().manual_seed(0)
    centres = torch.tensor([[4.0, 0.0, 0.0], [-4.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    features = torch.cat([c + torch.randn(100, 3, generator=g) for c in centres])
    logits = (
        torch.stack([features[:, 0], -features[:, 0]], 1)
        * torch.tensor([2.0, 2.0, 0.2]).repeat_interleave(100)[:, None]
    )
    found = GATES["mahalanobis"].function(features, logits)
    assert float(found[:200].min()) > float(found[200:].max())
    assert abs(float(found.std(correction=0)) - 1) < 1e-9
