"""Separate models that are trained side by side, seen as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plait.ensembles.answers import EnsembleOutput
from plait.ensembles.modeling import Ensemble


class Joint(nn.Module):
    """Models of one member each; their logits stand side by side as those of members."""

    def __init__(self, models: Sequence[Ensemble]) -> None:
        """Keeps the models."""
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, **inputs: Any) -> EnsembleOutput:
        """Returns what the models say, each from a pass of its own."""
        asked = {"output_members": True, **inputs}
        members: Tensor = torch.cat([model(**asked).member_logits for model in self.models])
        return EnsembleOutput(logits=members.mean(0), member_logits=members)
