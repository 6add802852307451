"""One model out of several weights, as pure functions: apart from the trainings that use them, to be tested alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor

from plait.ensembles.modeling import Ensemble

State = Mapping[str, Tensor]


def mean_state(states: Sequence[State]) -> dict[str, Tensor]:
    """Returns (1/M) Σ_j θ_j, summed in float64; what is no number is the first one's."""
    return {name: _mean([state[name] for state in states]) for name in states[0]}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        return first.clone()
    total = torch.zeros_like(first, dtype=torch.float64)
    for tensor in tensors:
        total += tensor.to(first.device)
    return (total / len(tensors)).to(first.dtype)


def averaged(models: Sequence[Ensemble]) -> Ensemble:
    """Returns a model of the mean weights of some models of one configuration."""
    made = copy.deepcopy(models[0])
    made.load_state_dict(mean_state([model.state_dict() for model in models]))
    made.eval()
    return made


def greedy(scores: Sequence[float], score_of: Callable[[Sequence[int]], float]) -> tuple[int, ...]:
    """Returns which models a greedy soup takes, in the order in which they came in  (Model soups, recipe 1).

    Args:
        scores: Of each model alone, the higher the better; the first of equals goes first.
        score_of: The score of the mean of some of them.
    """
    order = sorted(range(len(scores)), key=lambda j: -scores[j])
    taken: tuple[int, ...] = (order[0],)
    best = scores[order[0]]
    for j in order[1:]:
        tried = score_of((*taken, j))
        if tried >= best:
            taken, best = (*taken, j), tried
    return taken


@torch.no_grad()
def branched(state: State, noise: float, generator: Generator) -> dict[str, Tensor]:
    """Returns θ + σ s ε: each tensor with Gaussian noise of σ times its own standard deviation s.

    Tensors that are all alike, such as biases of zero, stay as they are, and so do those of a single number.
    """
    found = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.numel() < 2:
            found[name] = tensor.clone()
            continue
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
        found[name] = tensor + noise * tensor.std(correction=0) * drawn
    return found


def likeness(models: Sequence[Ensemble]) -> float:
    """Returns the least cosine between the first model's last linear layer and another's: near 0 if drawn apart."""
    heads = [model.get_parameter("heads.out.weight").detach().flatten().double() for model in models]
    return min((float(torch.cosine_similarity(heads[0], h, dim=0)) for h in heads[1:]), default=1.0)
