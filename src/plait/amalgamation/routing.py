"""From gate scores to weights, a choice and a margin per text; teachers calibrated to one scale without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plait.amalgamation.gate import Logits, Probabilities
from plait.errors import DataError, RecipeError, listed

LEAST_MARGIN = 1e-6
BINS = 10

Scores = Float[Tensor, "n t"]
"""One number per text and teacher."""
Choice = Int[Tensor, " n"]
"""One teacher per text."""
Margin = Float[Tensor, " n"]
"""One number per text."""


@dataclass(frozen=True)
class Routing:
    """What a gate says of n texts and t teachers.

    Attributes:
        scores: How competent each teacher is, higher is more.
        weights: softmax(scores / τ), for soft targets.
        choice: The most competent teacher, the first of equals, for hard targets.
        margin: How far ahead it is of the second, for the weights of texts.
    """

    scores: Scores
    weights: Scores
    choice: Choice
    margin: Margin

    def first(self, count: int) -> Routing:
        """Returns the same of the first texts alone."""
        return Routing(self.scores[:count], self.weights[:count], self.choice[:count], self.margin[:count])


def route(scores: Scores, *, temperature: float) -> Routing:
    """Returns the weights, choice and margin that scores stand for.

    w = softmax(s / τ),  i* = argmax_i s_i,  v = s_(1) − s_(2) + 1e-6; v = 1 where there is one teacher

    Args:
        scores: s, one column per teacher.
        temperature: τ > 0.

    Raises:
        RecipeError: When the temperature is not positive.
        DataError: When scores are not finite.
    """
    if not temperature > 0:
        raise RecipeError(f"gate temperature {temperature}: expected a number above 0")
    _check(scores)
    return Routing(
        scores,
        torch.softmax(scores.double() / temperature, -1).float(),
        scores.argmax(-1),
        _margin(scores).float(),
    )


def _check(scores: Tensor) -> None:
    bad = (~torch.isfinite(scores)).sum(0).tolist()
    if problems := [f"teacher {at} on {count} texts" for at, count in enumerate(bad, 1) if count]:
        raise DataError(
            f"gate scores are not finite for {listed(problems)}: look for overflow or NaN in its logits"
        )


def _margin(scores: Tensor) -> Tensor:
    if scores.shape[1] < 2:
        return scores.new_ones(len(scores))
    best = scores.topk(2, -1).values
    return best[:, 0] - best[:, 1] + LEAST_MARGIN


def summary(
    routing: Routing, teachers: Sequence[str], truth: Tensor | None = None, known: Tensor | None = None
) -> dict[str, Any]:
    """Returns who taught what, ready for JSON.

    Args:
        routing: of all texts.
        teachers: their names.
        truth: true labels as positions in the union, −1 where unknown.
        known: which labels each teacher has, [t, C]; with `truth` it gives the routing accuracy, the share of the
            labelled texts whose chosen teacher has the true label.
    """
    shares = torch.bincount(routing.choice, minlength=len(teachers)) / max(len(routing.choice), 1)
    result: dict[str, Any] = {
        "texts": len(routing.choice),
        "teachers": {
            name: {"share": _rounded(shares[at]), "mean_weight": _rounded(routing.weights[:, at].mean())}
            for at, name in enumerate(teachers)
        },
        "margin": _histogram(routing.margin),
    }
    if truth is not None and known is not None:
        result["routing"] = _accuracy(routing, truth, known)
    return result


def _histogram(margin: Tensor) -> dict[str, Any]:
    """Returns ten equal bins from 0 to the greatest margin, or to 1 if that is more."""
    values = margin.double()
    top = max(1.0, float(values.max())) if len(values) else 1.0
    counts = torch.histc(values, BINS, 0.0, top)
    return {
        "mean": _rounded(values.mean()),
        "median": _rounded(values.median()) if len(values) else 0.0,
        "edges": [round(top * at / BINS, 6) for at in range(BINS + 1)],
        "counts": [int(count) for count in counts],
    }


def _accuracy(routing: Routing, truth: Tensor, known: Tensor) -> dict[str, Any]:
    labelled = truth >= 0
    right = known[routing.choice[labelled], truth[labelled]]
    count = int(labelled.sum())
    return {"labelled": count, "accuracy": _rounded(right.double().mean()) if count else None}


def _rounded(value: Tensor) -> float:
    return round(float(value.nan_to_num(0.0)), 6)


COLDEST, HOTTEST = 0.01, 100.0
_HALVINGS = 60


def temperature_from_passes(logits: Logits, mean: Probabilities) -> float:
    """Returns the temperature at which one pass is nearest to the Monte Carlo mean.

    T = argmin_T mean_x KL(p̄ ‖ softmax(z / T)),  0.01 ≤ T ≤ 100

    In β = 1/T this is convex: its slope Σ_c (softmax(βz)_c − p̄_c) z_c, averaged over the texts, only grows, and is
    halved down to 0. Logits that do not tell labels apart leave T = 1.

    Args:
        logits: z, of one deterministic pass.
        mean: p̄.
    """
    scores, goal = logits.double(), mean.double()
    scores = scores - scores.mean(-1, keepdim=True)
    if not len(scores) or not bool((scores != 0).any()):
        return 1.0
    wanted = (goal * scores).sum(-1).mean()
    low, high = -math.log(HOTTEST), -math.log(COLDEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = (torch.softmax(math.exp(middle) * scores, -1) * scores).sum(-1).mean()
        low, high = (low, middle) if reached > wanted else (middle, high)
    return math.exp(-(low + high) / 2)


def standardize(scores: Scores) -> Scores:
    """Returns scores with mean 0 and standard deviation 1 for each teacher: (s − mean) / sd.

    Takes away that one teacher is surer than another on every text. It supposes that the teachers know about equally
    much of the corpus: one that knows most of it loses texts to the others.

    Args:
        scores: one column per teacher; a constant column becomes 0.
    """
    centred = scores.double() - scores.double().mean(0)
    spread = centred.square().mean(0).sqrt()
    noise = 1e-12 * scores.double().abs().amax(0).clamp(min=1e-300)
    result: Tensor = torch.where(spread > noise, centred / spread.clamp(min=1e-300), 0.0)
    return result
