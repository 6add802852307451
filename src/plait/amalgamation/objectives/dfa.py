"""Distillation with layers aligned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.amalgamation.adapters import Alignment, same_depth
from plait.amalgamation.objective import (
    OBJECTIVES,
    TEMPERATURES,
    Columns,
    Layers,
    Logits,
    Outputs,
    TeacherLayers,
    Terms,
)
from plait.amalgamation.objectives.vkd import vkd


@OBJECTIVES.register(
    "dfa",
    paper="arXiv:1811.02796",
    keep="layers",
    adapters=Alignment,
    limits={"temperature": TEMPERATURES, "alignment": (0.0, math.inf)},
    when="For comparison: teachers as deep as the student, matched layer by layer.",
)
def dfa(  # noqa: PLR0917 (inputs by name)
    student_logits: Logits,
    teacher_logits: Outputs,
    columns: Columns,
    student_layers: Layers,
    teacher_layers: Sequence[TeacherLayers],
    adapters: nn.Module,
    *,
    temperature: float = 1.0,
    alignment: float = 1.0,
    distance: Literal["mse", "cosine"] = "mse",
) -> Terms:
    """Returns the loss of `vkd` and the distance of the student's layers from the teachers' at the same depth.

    loss = vkd + λ · mean_{b,i,l} D(A_il h_l, h_i,m),  m = round(l · L_i / L),  l = 1 … L
    D(a, b) = ‖LN(a) − LN(b)‖² / d  or  1 − cos(a, b)

    LN takes the mean away and divides by the standard deviation, without parameters: teachers whose layers have other
    magnitudes count alike.

    Differs from the paper, where the features of all teachers are first compressed together and the student then
    learns the compressed ones layer after layer: here a linear map A_il from the student's layer to the teacher's own
    is trained along, so no teacher's features are changed by another's, and depths and widths may differ. Vectors are
    means over the tokens, so tokenizers may differ.

    Args:
        student_logits: z.
        teacher_logits: z_i.
        columns: the positions of each teacher's labels in the union.
        student_layers: h_0 … h_L; h_0, the embeddings, is not aligned.
        teacher_layers: h_i,0 … h_i,L_i.
        adapters: A.
        temperature: T of `vkd`.
        alignment: λ.
        distance: D.
    """
    measure = _cosine if distance == "cosine" else _squared
    wanted = [
        layers[:, same_depth(student_layers.shape[1] - 1, layers.shape[1] - 1)].float()
        for layers in teacher_layers
    ]
    given = adapters(student_layers[:, 1:].float())
    each = [measure(a.float(), b).mean() for a, b in zip(given, wanted, strict=True)]
    distilled = vkd(student_logits, teacher_logits, columns, temperature=temperature)
    return {**distilled, "alignment": alignment * torch.stack(each).mean()}


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (F.layer_norm(a, a.shape[-1:]) - F.layer_norm(b, b.shape[-1:])).square().mean(-1)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(a, b, dim=-1)
