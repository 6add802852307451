"""The exact diagonal of the Fisher information: one number per weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plait.processes import summed
from plait.statistics.backward import Objective
from plait.statistics.batch import Batch
from plait.statistics.estimator import ESTIMATORS, body_name
from plait.statistics.per_example import ExampleGradients, Factor, Squares


class Diagonal:
    """Running sums of squared per-example gradients, one tensor per parameter."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        """Allocates the sums."""
        self._model = model
        self._squares = Squares()
        self._totals = {
            name: torch.zeros(
                value.shape, dtype=torch.promote_types(value.dtype, torch.float32), device=value.device
            )
            for name, value in model.named_parameters()
        }
        self._gradients = ExampleGradients(model, objective, self._add)

    def _add(self, name: str, piece: Factor) -> None:
        self._squares.add(self._totals[name], piece)

    def see(self, batch: Batch) -> None:
        """Adds a batch."""
        self._gradients.see(batch)

    def pool(self) -> None:
        """Adds up the sums of all processes."""
        for total in self._totals.values():
            total.copy_(summed(total))

    def result(self, examples: int) -> Mapping[str, Tensor]:
        """Returns the sums divided by the number of examples."""
        return {body_name(self._model, name): total.div_(examples) for name, total in self._totals.items()}

    def close(self) -> None:
        """Takes the hooks off the model."""
        self._gradients.close()


@ESTIMATORS.register(
    "diagonal",
    needs=("data",),
    paper="arXiv:2111.09832",
    when="Fisher merges: one number a weight, as exact as the method allows.",
)
def diagonal(model: PreTrainedModel, objective: Objective) -> Diagonal:
    """Returns the exact diagonal of the Fisher information, per example.

    F = (1/N) Σ_x Σ_y p(y|x) (∇ log p(y|x))²   (section 2); gradients are summed over tokens and over all uses of a
    shared weight before they are squared. Costs about one ordinary forward and backward pass; one example at a time,
    hence more, for families with relative position tables (MPNet, DeBERTa).
    """
    return Diagonal(model, objective)
