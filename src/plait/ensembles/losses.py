"""The task's loss of all members at once."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from plait.ensembles.heads import MemberLogits


def task_loss(members: MemberLogits, labels: Tensor, problem: str) -> Tensor:
    """Returns (1/M) Σ_j task(z_j, y): cross-entropy, binary cross-entropy or squared error, as transformers' heads.

    Each member is a batch of the same size with the same labels, so the mean over all rows is the mean over members.
    """
    expected = labels.expand(len(members), *labels.shape)
    if problem == "regression":
        return F.mse_loss(members.reshape(len(members), -1), expected.reshape(len(members), -1).to(members))
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(members, expected.to(members))
    return F.cross_entropy(members.flatten(0, -2), expected.flatten())
