"""Virtual adversarial perturbation: the small change of the states that moves the prediction most."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from plait.ensembles.divergences import means, read
from plait.ensembles.perturbation import (
    PERTURBATIONS,
    Generators,
    Place,
    Prediction,
    by_member,
    check,
    drawn,
    mask_by_member,
)
from plait.ensembles.shapes import Hidden, Mask, Values
from plait.registry import Above


@PERTURBATIONS.register(
    "adversarial",
    place=Place.HIDDEN,
    paper="arXiv:1704.03976",
    limits={"strength": Above(0.0), "start": Above(0.0), "steps": Above(0.0)},
    when="Members that agree too soon; costs additional passes in training.",
)
def adversarial(
    hidden: Hidden,
    members: int,
    prediction: Prediction,
    mask: Mask | None = None,
    generators: Generators = None,
    *,
    strength: float = 0.03,
    start: float = 0.1,
    steps: int = 1,
    at: Literal["hidden", "embeddings"] = "hidden",  # noqa: ARG001 (read by whoever calls: it says where)
) -> Hidden:
    """Returns the hidden states plus, per member and example, a direction that moves the prediction much.

    n_0 ~ N(0, σ²),  n_{t+1} = Π(n_t + r ∇KL(p(h) ‖ p(h + n_t)) / ‖∇KL‖),  Π: onto the ball of radius
    r = ε ‖h‖  (alg. 1 for K steps)

    Norms are over the real tokens of an example, so rms(n) ≤ ε rms(h). The clean prediction is held still, and every
    forward pass draws the same random numbers: dropout does not tell the two predictions apart. The result carries
    gradients to `hidden`, none through the direction; parameters get none from the search.

    Differs from the paper in the radius, relative to the states, and in keeping n_0 in the sum, of which little is
    left: σ is a tenth of the radius. Where the prediction does not move at all, n_0 is what is added.

    Args:
        hidden: h.
        members: M.
        prediction: what becomes of the states; with its clean logits given, one pass less.
        mask: the real tokens.
        generators: one per member.
        strength: ε.
        start: σ as a share of the radius.
        steps: K; each costs a forward and a backward pass.
        at: `hidden` for the states that enter the first private layer, `embeddings` for those that enter the first.
    """
    check("adversarial", strength=strength, start=start, steps=steps)
    h = by_member(hidden.detach(), members)
    real = mask_by_member(mask, h)
    radius = strength * _norm(h * real)
    known = _known(prediction, hidden)
    clean = means(read(torch.as_tensor(known.clean), known.problem), known.problem)
    # Per entry of size start · radius / √n, the whole draw is about start · radius long.
    scale = start * radius * _norm(real.expand_as(h)).clamp(min=1).reciprocal()
    noise = project(drawn(torch.randn, h.shape, h, generators) * real * scale, radius)
    for _ in range(steps):
        uphill = _ascent(known, clean, h + noise) * real
        noise = project(noise + radius * uphill / _norm(uphill).clamp(min=torch.finfo(h.dtype).tiny), radius)
    return (by_member(hidden, members) + noise).to(hidden.dtype).reshape(hidden.shape)


def project(noise: Tensor, radius: Tensor) -> Tensor:
    """Returns the noise, cut back to the radius where it is longer: Π(n) = n · min(1, r/‖n‖)."""
    length = _norm(noise).clamp(min=torch.finfo(noise.dtype).tiny)
    share: Tensor = (radius / length).clamp(max=1)
    return noise * share


def _norm(values: Tensor) -> Tensor:
    """Returns ‖·‖ over the tokens of an example, [M, B, 1, 1]."""
    lengths: Tensor = torch.linalg.vector_norm(values, dim=(-2, -1), keepdim=True)
    return lengths


def _known(prediction: Prediction, hidden: Hidden) -> Prediction:
    """Returns the prediction with its clean logits, and the same random numbers at every call."""
    devices = [hidden.device] if hidden.is_cuda else []

    def forward(h: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=devices):
            return prediction.forward(h.to(hidden.dtype).reshape(hidden.shape))

    with torch.no_grad():
        clean = forward(hidden) if prediction.clean is None else prediction.clean.detach()
    return replace(prediction, forward=forward, clean=clean)


def _ascent(prediction: Prediction, clean: Values, moved: Tensor) -> Tensor:
    """Returns ∇_n KL(p(h) ‖ p(h + n)) of every example."""
    moved = moved.detach().requires_grad_()
    with torch.enable_grad():
        z = read(prediction.forward(moved), prediction.problem)
    # At the logits the gradient of the divergence is the difference of the means: taken so, nothing cancels.
    residual = means(z.detach(), prediction.problem) - clean
    if prediction.counted is not None:
        residual = residual * prediction.counted.unsqueeze(-1)
    (gradient,) = torch.autograd.grad(z, moved, residual)
    return torch.as_tensor(gradient)
