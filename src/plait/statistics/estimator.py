"""What an estimator is: something that looks at batches and ends with named tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor
from transformers import PreTrainedModel

from plait.registry import Registry
from plait.statistics.backward import Objective
from plait.statistics.batch import Batch


@runtime_checkable
class Estimator(Protocol):
    """Sees every batch once; keeps sums over examples; `result` divides them by what they were summed over."""

    def see(self, batch: Batch) -> None:
        """Adds a batch."""

    def pool(self) -> None:
        """Adds up the sums of all processes that share the job; called once, before `result`."""

    def result(self, examples: int) -> Mapping[str, Tensor]:
        """Returns the statistic, by body-relative name where it belongs to a parameter of the body."""

    def close(self) -> None:
        """Takes its hooks off the model."""


Maker = Callable[[PreTrainedModel, Objective], Estimator]
ESTIMATORS: Registry[Maker] = Registry("importance", "plait.statistics.estimators", plugins="plait.importances")


def body_name(model: PreTrainedModel, parameter: str) -> str:
    """Returns the name relative to the body (`bert.encoder.…` is `encoder.…`); names of the head stay as they are."""
    return (
        parameter.removeprefix(f"{model.base_model_prefix}.") if model.base_model is not model else parameter
    )
