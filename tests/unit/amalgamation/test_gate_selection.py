"""Several gates as one, neighbours, and targets that all teachers agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from plait.amalgamation.gate_selection import JOINT, auto, fitted, weights_of
from plait.amalgamation.label_space import union
from plait.amalgamation.neighbours import averaged, nearest
from plait.amalgamation.routing import route
from plait.amalgamation.targets import consensus, soft
from plait.errors import DataError
from tests.reference import amalgamation as reference


def drawn(seed: int, n: int, shares: Sequence[float], gaps: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Returns who owns each text, and scores of gates: a teacher's is higher by `gap` on its own texts."""
    g = torch.Generator().manual_seed(seed)
    owner = torch.multinomial(torch.tensor(shares), n, replacement=True, generator=g)
    own = torch.nn.functional.one_hot(owner, len(shares)).double()
    noise = torch.randn(n, len(shares), len(gaps), generator=g, dtype=torch.float64)
    shift = torch.randn(len(shares), len(gaps), generator=g, dtype=torch.float64) * 3
    return owner, noise + own[..., None] * torch.tensor(gaps, dtype=torch.float64) + shift


@pytest.mark.parametrize("seed", range(4))
def test_auto_equals_its_reference(seed: int) -> None:
    _, panel = drawn(seed, 25, [0.5, 0.3, 0.2][: 2 + seed % 2], [2.0, 1.0][: 1 + seed // 2])
    found = auto(panel, ["a", "b"][: panel.shape[-1]]).routing.weights.double()
    torch.testing.assert_close(found, torch.tensor(reference.auto(panel.numpy())), rtol=1e-4, atol=1e-5)


def test_auto_finds_owners_shares_and_which_gates_know() -> None:
    owner, panel = drawn(0, 4000, [0.65, 0.25, 0.1], [3.0, 3.0, 0.0])
    verdict = auto(panel, ["one", "two", "noise"])
    assert float((verdict.routing.choice == owner).double().mean()) > 0.93
    plain = float((panel.sum(-1).argmax(-1) == owner).double().mean())
    assert plain < 0.9, "scores as they are would have done: the test says nothing"
    weights = {name: about["weight"] for name, about in verdict.evidence["gates"].items()}
    assert weights["one"] > 5 * abs(weights["noise"])
    assert verdict.evidence["prior"] == pytest.approx([0.65, 0.25, 0.1], abs=0.04)
    assert set(verdict.members) == {"one", "two", "noise"}


def test_auto_does_not_care_for_the_order_of_gates_scales_or_teachers() -> None:
    _, panel = drawn(1, 300, [0.5, 0.3, 0.2], [2.0, 1.0])
    whole = auto(panel, ["a", "b"]).routing.weights
    torch.testing.assert_close(auto(panel.flip(-1), ["b", "a"]).routing.weights, whole)
    scaled = panel * torch.tensor([7.0, 0.1], dtype=torch.float64) + 5
    torch.testing.assert_close(auto(scaled, ["a", "b"]).routing.weights, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(auto(panel.flip(1), ["a", "b"]).routing.weights.flip(1), whole)


def test_a_gate_that_says_nothing_weighs_nothing() -> None:
    _, panel = drawn(2, 300, [0.5, 0.5], [2.0])
    constant = torch.cat([panel, torch.ones_like(panel)], -1)
    verdict = auto(constant, ["a", "flat"])
    assert verdict.evidence["gates"]["flat"] == {"weight": 0.0, "separation": 0.0}
    torch.testing.assert_close(verdict.routing.weights, auto(panel, ["a"]).routing.weights)


def test_one_teacher_is_believed_on_every_text() -> None:
    routing = auto(torch.randn(5, 1, 2, dtype=torch.float64), ["a", "b"]).routing
    assert routing.choice.tolist() == [0] * 5
    assert torch.equal(routing.margin, torch.ones(5))


def test_the_margin_of_log_odds_is_that_of_the_shares() -> None:
    routing = weights_of(torch.tensor([[0.0, math.log(3.0)]]))
    assert routing.weights.tolist() == [[pytest.approx(0.25), pytest.approx(0.75)]]
    assert float(routing.margin) == pytest.approx(0.5, abs=1e-5)


def test_labels_show_a_gate_that_is_the_wrong_way_round() -> None:
    owner, panel = drawn(3, 1000, [0.5, 0.5], [2.0, 2.0])
    panel[..., 0] *= -1
    rows = torch.arange(40)
    known = torch.nn.functional.one_hot(owner[rows], 2).bool()
    verdict = fitted(panel, ["wrong", "right"], known, rows)
    weights = verdict.evidence["gates"]
    assert weights["wrong"]["weight"] < 0 < weights["right"]["weight"]
    assert float((verdict.routing.choice == owner)[40:].double().mean()) > 0.95
    assert verdict.evidence["labelled"] == 40


def test_labels_of_all_teachers_tell_none_apart() -> None:
    with pytest.raises(DataError, match=r"do not tell the teachers apart.*--gate auto"):
        fitted(torch.randn(4, 2, 1), ["a"], torch.ones(4, 2, dtype=torch.bool), torch.arange(4))


def test_joint_gates_are_documented() -> None:
    assert set(JOINT) == {"auto", "fitted"}
    assert all(JOINT[name].summary.startswith("Returns") for name in JOINT)


def test_nearest_are_those_of_the_plain_formula() -> None:
    points = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    centred = points.double().numpy() - points.double().numpy().mean(0)
    found = nearest(points, 5)
    for x in range(30):
        alike = {}
        for y in set(range(30)) - {x}:
            alike[y] = centred[x] @ centred[y] / np.linalg.norm(centred[x]) / np.linalg.norm(centred[y])
        assert found[x].tolist() == sorted(alike, key=alike.__getitem__, reverse=True)[:5]


def test_neighbours_in_pieces_and_among_some(monkeypatch: pytest.MonkeyPatch) -> None:
    from plait.amalgamation import neighbours as room

    points = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    whole = nearest(points, 7)
    monkeypatch.setattr(room, "_ROWS", 8)
    assert torch.equal(nearest(points, 7), whole)
    monkeypatch.setattr(room, "REFERENCES", 25)
    assert set(nearest(points, 7).flatten().tolist()) <= set(range(0, 50, 2))


def test_fewer_texts_than_neighbours() -> None:
    near = nearest(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), 30)
    assert near.shape == (3, 2)
    torch.testing.assert_close(averaged(torch.tensor([1.0, 2.0, 6.0]), near, 30), torch.full((3,), 3.0))


def test_neighbours_of_states_that_are_not_finite() -> None:
    with pytest.raises(DataError, match="the features of 1 texts are not finite; name another base with --base"):
        nearest(torch.tensor([[1.0], [float("nan")]]))


def test_consensus_equals_its_reference() -> None:
    space = union({"a": ("x", "y", "z"), "b": ("z", "w"), "c": ("v", "w")})
    g = torch.Generator().manual_seed(0)
    posteriors = [torch.softmax(torch.randn(6, len(c), generator=g), -1) for c in space.columns]
    scores = torch.randn(6, len(space.teachers), generator=g)
    routing = route(scores, temperature=0.7)
    found = consensus(posteriors, routing, space)
    arrays = [p.double().numpy() for p in posteriors]
    wanted = reference.consensus(arrays, scores.double().numpy(), space.columns, len(space), 0.7)
    torch.testing.assert_close(found.double(), torch.tensor(wanted), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.sum(-1), torch.ones(6))


def test_consensus_of_teachers_that_share_nothing_is_the_soft_target() -> None:
    space = union({"a": ("x", "y"), "b": ("w", "v", "u"), "c": ("w", "t")})
    apart = union({"a": ("x", "y"), "b": ("w", "v", "u")})
    g = torch.Generator().manual_seed(0)
    posteriors = [torch.softmax(torch.randn(6, len(c), generator=g), -1) for c in apart.columns]
    routing = route(torch.randn(6, 2, generator=g), temperature=0.7)
    torch.testing.assert_close(consensus(posteriors, routing, apart), soft(posteriors, routing, apart))
    # The third shares a label with the second: among them they are compared, and the first only by the gate.
    three = [*posteriors, torch.softmax(torch.randn(6, 2, generator=g), -1)]
    sure = route(torch.tensor([[9.0, 0.0, 0.0]]).expand(6, -1), temperature=0.1)
    torch.testing.assert_close(consensus(three, sure, space)[:, :2], posteriors[0], rtol=1e-4, atol=1e-4)


def test_consensus_believes_who_is_sure_that_the_shared_label_is_wrong() -> None:
    """Sports for the one; the other knows Business and Tech alone and would have said Tech."""
    space = union({"one": ("Business", "Sports"), "other": ("Business", "Tech")})
    posteriors = [torch.tensor([[0.01, 0.99]]), torch.tensor([[0.1, 0.9]])]
    found = consensus(posteriors, route(torch.zeros(1, 2), temperature=1.0), space)
    assert found.argmax().item() == space.names.index("Sports")
