"""What an ensemble gives back: outputs as transformers has them, and the members' loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.utils.generic import ModelOutput

from plait.data.labels import IGNORED
from plait.ensembles.shapes import MemberLogits

EXTRAS = ("output_hidden_states", "output_attentions")
"""What a call or a configuration may ask for beside logits."""


@dataclass
class EnsembleOutput(ModelOutput):
    """What an ensemble says: the mean logits, and `member_logits`, [M, B, C] or [M, B, T, C]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    member_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def task_loss(members: MemberLogits, labels: Tensor, problem: str) -> Tensor:
    """Returns (1/M) Σ_j task(z_j, y): cross-entropy, binary cross-entropy or squared error, as transformers' heads.

    Each member is a batch of the same size with the same labels, so the mean over all rows is the mean over members.
    """
    expected = labels.expand(len(members), *labels.shape)
    if problem == "regression":
        return F.mse_loss(members.reshape(len(members), -1), expected.reshape(len(members), -1).to(members))
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(members, expected.to(members))
    table, classes = members.flatten(0, -2), expected.flatten()
    # Not the mean of nothing, NaN, where no token has a label.
    return F.cross_entropy(table, classes, reduction="sum") / (classes != IGNORED).sum().clamp(min=1)


def told(options: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Returns the options of a call, with what the configuration asks for where the call does not say."""
    always = {name: True for name in EXTRAS if getattr(config, name, False)}
    return {**always, **{name: value for name, value in options.items() if value is not None}}


def refuse_unkept(options: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Raises when hidden states or attentions are asked of members that have some of their own."""
    wanted = [name for name in EXTRAS if options.get(name) and not extra]
    if wanted:
        raise ValueError(
            f"{' and '.join(wanted)}: the members have layers of their own or draw for themselves; expected a model in "
            "evaluation whose layers are all shared"
        )
