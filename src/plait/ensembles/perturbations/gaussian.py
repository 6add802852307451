"""Gaussian noise on embeddings or hidden states."""

from __future__ import annotations

from typing import Literal

import torch

from plait.ensembles.perturbation import (
    PERTURBATIONS,
    Generators,
    Place,
    by_member,
    check,
    drawn,
    mask_by_member,
)
from plait.ensembles.shapes import Hidden, Mask
from plait.registry import Above


@PERTURBATIONS.register(
    "gaussian",
    place=Place.HIDDEN,
    paper="arXiv:2008.03156",
    limits={"strength": Above(0.0)},
    when="Encoders without dropout.",
)
def gaussian(
    hidden: Hidden,
    members: int,
    mask: Mask | None = None,
    generators: Generators = None,
    *,
    strength: float = 0.1,
    at: Literal["hidden", "embeddings"] = "hidden",  # noqa: ARG001 (read by whoever calls: it says where)
) -> Hidden:
    """Returns the hidden states plus noise, h + σ · rms(h) · n with n ~ N(0, 1), fresh for every member.

    Differs from the paper in the scale: σ there is absolute (1e-5). Here it is relative to the root mean square of each
    token's state, because families and depths differ in the size of their states by two orders of magnitude. The
    scale is held still in the gradient; padding stays as it is.

    Args:
        hidden: h.
        members: M.
        mask: the real tokens.
        generators: one per member.
        strength: σ.
        at: `hidden` for the states that enter the first private layer, `embeddings` for those that enter the first.
    """
    check("gaussian", strength=strength)
    h = by_member(hidden, members)
    size = h.detach().square().mean(-1, keepdim=True).sqrt() * mask_by_member(mask, h)
    noise = drawn(torch.randn, h.shape, h, generators) * size * strength
    return (h + noise).to(hidden.dtype).reshape(hidden.shape)
