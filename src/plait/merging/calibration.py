"""Biases and norms in closed form, from means and second moments of what enters them; for the rule `calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LinearMoments:
    """Sums over the tokens of one source's texts, of a linear layer.

    Attributes:
        gram: Σ x̃ x̃ᵀ, [in, in], x̃ what enters the layer in the merged model.
        cross: Σ x̃ tᵀ, [in, in], t = a x + (1 − a) x̃ with x what enters it in the source.
        merged: Σ x̃, [in].
        target: Σ t, [in].
        count: tokens.
    """

    gram: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    merged: Tensor | float = 0.0
    target: Tensor | float = 0.0
    count: int = 0

    def add(self, merged: Tensor, source: Tensor | None, own: float) -> None:
        """Adds tokens, [tokens, in]; without a source's inputs only `gram` and `count` are kept."""
        self.gram = self.gram + merged.T @ merged
        self.count += len(merged)
        if source is None:
            return
        target = merged.lerp(source, own)
        self.cross = self.cross + merged.T @ target
        self.merged = self.merged + merged.sum(0)
        self.target = self.target + target.sum(0)


def fitted_bias(
    weight: Tensor,
    sources: Sequence[Tensor],
    biases: Sequence[Tensor],
    moments: Sequence[LinearMoments],
    shares: Sequence[float],
) -> Tensor:
    """Returns the bias with which the mean output is that of the sources.

    b = Σ_j λ_j (W_j E[t_j] + b_j − W E[x̃_j]) / Σ_j λ_j

    Args:
        weight: W of the merged model, [out, in].
        sources: W_j.
        biases: b_j, [out].
        moments: of each source.
        shares: λ_j.
    """
    gaps = [
        share * (w.double() @ _mean(m.target, m) + b.double() - weight.double() @ _mean(m.merged, m))
        for w, b, m, share in zip(sources, biases, moments, shares, strict=True)
    ]
    return (torch.stack(gaps).sum(0) / sum(shares)).to(weight.dtype)


def _mean(total: Tensor | float, moments: LinearMoments) -> Tensor:
    assert isinstance(total, Tensor)
    return total.double() / moments.count


@dataclass
class NormMoments:
    """Sums over the tokens of one source's texts, per channel of a norm.

    x̂ is its normalised input in the merged model, y what the source gives.
    """

    x: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    y: Tensor | float = 0.0
    xy: Tensor | float = 0.0
    count: int = 0

    def add(self, normalised: Tensor, target: Tensor) -> None:
        """Adds tokens, [tokens, d]."""
        x, y = normalised.double(), target.double()
        self.x, self.xx = self.x + x.sum(0), self.xx + x.square().sum(0)
        self.y, self.xy = self.y + y.sum(0), self.xy + (x * y).sum(0)
        self.count += len(normalised)


def fitted_norm(
    scale: Tensor, shift: Tensor | None, moments: Sequence[NormMoments], shares: Sequence[float], ridge: float
) -> tuple[Tensor, Tensor | None]:
    """Returns scale and shift of a norm, channel by channel.

    min over γ, β of Σ_j λ_j E[(γ x̂ + β − y_j)²] + ε E[x̂²] (γ − γ̄)², γ̄ the λ-average.

    Args:
        scale: γ̄, [d].
        shift: β̄, [d], or None for a norm without.
        moments: of each source.
        shares: λ_j.
        ridge: ε.
    """

    def mean(name: str) -> Tensor:
        parts = [getattr(m, name) / m.count * s for m, s in zip(moments, shares, strict=True)]
        return torch.stack(parts).sum(0) / sum(shares)

    x, xx, y, xy = (mean(name) for name in ("x", "xx", "y", "xy"))
    gamma = scale.double()
    if shift is None:
        moved = (xy - gamma * xx) / (xx * (1 + ridge)).clamp(min=1e-12)
        return (gamma + moved).to(scale.dtype), None
    beta = shift.double()
    far, far_x = y - gamma * x - beta, xy - gamma * xx - beta * x
    # Two unknowns a channel; the second equation gives δβ = E[e] − δγ E[x̂].
    moved = (far_x - x * far) / (xx * (1 + ridge) - x.square()).clamp(min=1e-12)
    return (gamma + moved).to(scale.dtype), (beta + far - moved * x).to(shift.dtype)
