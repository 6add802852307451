"""Distillation with features that look alike in a common space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.amalgamation.adapters import CommonSpace
from plait.amalgamation.objective import (
    OBJECTIVES,
    TEMPERATURES,
    Columns,
    Features,
    Logits,
    Outputs,
    TeacherFeatures,
    Terms,
)
from plait.amalgamation.objectives.vkd import vkd

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
_LEAST = 1e-6  # of a kernel's squared width: features are of length 1


@OBJECTIVES.register(
    "cfl",
    paper="arXiv:1906.10546",
    keep="features",
    adapters=CommonSpace,
    limits={"temperature": TEMPERATURES, "matching": (0.0, math.inf), "reconstruction": (0.0, math.inf)},
    when="For comparison: features of teachers and student in one common space.",
)
def cfl(  # noqa: PLR0917 (inputs by name)
    student_logits: Logits,
    teacher_logits: Outputs,
    columns: Columns,
    student_features: Features,
    teacher_features: Sequence[TeacherFeatures],
    adapters: nn.Module,
    *,
    temperature: float = 1.0,
    matching: float = 0.1,
    reconstruction: float = 0.1,
) -> Terms:
    """Returns the loss of `vkd`, the discrepancy of features in a common space, and what that space loses.

    loss = vkd + λ_M Σ_i MMD²(E_s(f), E_i(f_i)) + λ_R Σ_i ‖D_i(E_i(f_i)) − f_i‖² / d_i
    MMD²(X, Y) = mean k(x, x′) + mean k(y, y′) − 2 mean k(x, y),  k(a, b) = Σ_w exp(−‖a − b‖² / (2 w σ²))

    With both λ = 1 the features are matched and labels hardly learnt where texts are few; hence 0.1.

    E project into the common space through a part that all share, D project back. Projections are scaled to length 1
    before comparing; w is 1/4, 1/2, 1, 2, 4; σ² is the mean squared distance between all pairs of the batch, taken as
    a constant.

    Differs from the paper in the features: one vector per text, with mean 0 and variance 1, so that teachers with
    large activations do not rule the reconstruction.

    Args:
        student_logits: z.
        teacher_logits: z_i.
        columns: the positions of each teacher's labels in the union.
        student_features: f.
        teacher_features: f_i.
        adapters: E and D.
        temperature: T of `vkd`.
        matching: λ_M.
        reconstruction: λ_R.
    """
    own = _standard(student_features)
    theirs = [_standard(features) for features in teacher_features]
    common, commons, rebuilt = adapters(own, theirs)
    matched = [discrepancy(_scaled(common), _scaled(c)) for c in commons]
    lost = [F.mse_loss(back.float(), features) for back, features in zip(rebuilt, theirs, strict=True)]
    return {
        **vkd(student_logits, teacher_logits, columns, temperature=temperature),
        "matching": matching * torch.stack(matched).sum(),
        "reconstruction": reconstruction * torch.stack(lost).sum(),
    }


def discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Returns MMD² between two batches with kernels of several widths around the mean distance."""
    points = torch.cat([x, y])
    squared = (points[:, None] - points[None]).square().sum(-1)
    scale = squared.detach().mean().clamp(min=_LEAST)
    kernel = torch.stack([torch.exp(squared / (-2 * width * scale)) for width in WIDTHS]).sum(0)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def _scaled(points: Tensor) -> Tensor:
    return F.normalize(points.float(), dim=-1)


def _standard(features: Tensor) -> Tensor:
    return F.layer_norm(features.float(), features.shape[-1:])
