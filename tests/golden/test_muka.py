"""One text, two teachers with three and two labels, every number worked out by hand to six digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait.amalgamation import targets
from plait.amalgamation.gate import GATES
from plait.amalgamation.label_space import union
from plait.amalgamation.objective import OBJECTIVES
from plait.amalgamation.routing import Routing, route

PASSES = (
    torch.tensor([[[0.9, 0.05, 0.05]], [[0.7, 0.2, 0.1]]]),
    torch.tensor([[[0.6, 0.4]], [[0.3, 0.7]]]),
)
LOGITS = (torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.5, -0.5]]))
STUDENT = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]])
SPACE = union({"first": ["a", "b", "c"], "second": ["d", "e"]})


def near(found: Tensor, wanted: list[float], digits: float = 5e-5) -> None:
    torch.testing.assert_close(found.float(), torch.tensor([wanted]), rtol=0, atol=digits)


@pytest.fixture
def routing() -> Routing:
    scores = [GATES["muka"].function(passes.mean(0)) for passes in PASSES]
    return route(torch.stack(scores, 1), temperature=GATES["muka"].facts["temperature"])


def test_scores_weights_and_margin(routing: Routing) -> None:
    near(PASSES[0].mean(0), [0.8, 0.125, 0.075])
    near(routing.scores, [0.4241, 0.0072])
    near(routing.weights, [0.8894, 0.1106])
    near(routing.margin[None], [0.4169])
    assert routing.choice.tolist() == [0]


@pytest.fixture
def posteriors() -> list[Tensor]:
    return [targets.probabilities(z) for z in LOGITS]


def test_targets(routing: Routing, posteriors: list[Tensor]) -> None:
    near(posteriors[0], [0.8438, 0.1142, 0.0420])
    near(posteriors[1], [0.7311, 0.2689])
    near(targets.hard(posteriors, routing, SPACE), [0.8438, 0.1142, 0.0420, 0.0, 0.0])
    near(targets.soft(posteriors, routing, SPACE), [0.7504, 0.1016, 0.0374, 0.0809, 0.0298])


@pytest.mark.parametrize(
    ("kind", "plain", "weighted"), [("hard", 0.536771, 0.223755), ("soft", 0.275872, 0.114998)]
)
def test_losses(kind: str, plain: float, weighted: float, routing: Routing, posteriors: list[Tensor]) -> None:
    target = getattr(targets, kind)(posteriors, routing, SPACE)
    loss = OBJECTIVES["muka"].function
    found = [float(loss(STUDENT, target, v)["divergence"]) for v in (torch.ones(1), routing.margin)]
    assert found == pytest.approx([plain, weighted], abs=5e-7)
