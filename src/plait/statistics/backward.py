"""One forward pass and its backward passes, with only the gradients that are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plait.errors import DataError, RecipeError, did_you_mean
from plait.statistics.batch import Batch
from plait.statistics.likelihood import Cotangents, read_logits

Per = Literal["example", "batch"]
Backward = tuple[Tensor, Tensor | None, bool]
"""An output, its cotangent, and whether another pass follows through the same graph."""
PER: tuple[Per, ...] = ("example", "batch")


@contextmanager
def prepared(model: PreTrainedModel) -> Iterator[None]:
    """Holds the model in eval mode with frozen weights, and puts every mode and flag back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.enable_grad(), _any_batch(model):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


@contextmanager
def _any_batch(model: PreTrainedModel) -> Iterator[None]:
    """Lets a decoder without a pad token take copies of one text, which its class refuses."""
    config = model.config.get_text_config()
    lacking = getattr(config, "pad_token_id", 0) is None
    if lacking:
        config.pad_token_id = -1  # what no text holds: its last token is the last one
    try:
        yield
    finally:
        if lacking:
            config.pad_token_id = None


@contextmanager
def requiring_gradients(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Thaws frozen parameters for plain autograd."""
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)


@dataclass(frozen=True)
class Objective:
    """What is differentiated: the log-likelihood of each example, or (by name only) a batch's mean loss."""

    cotangents: Cotangents = field(default_factory=Cotangents)
    per: Per = "example"

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise RecipeError(f"unknown per {self.per!r}{did_you_mean(self.per, PER)}")
        if self.per == "batch" and self.cotangents.labels != "given":
            raise RecipeError(
                f"per: batch reproduces published numbers with given labels only, not {self.cotangents.labels}"
            )

    def passes(self, model: PreTrainedModel, batch: Batch) -> Iterator[Backward]:
        """Yields the backward passes of one forward pass."""
        if self.per == "batch":
            yield _mean_loss(model, batch), None, False
            return
        logits = read_logits(model, model(**batch.inputs), batch)
        columns = list(self.cotangents(logits, batch))
        for number, column in enumerate(columns, start=1):
            yield logits.values, column, number < len(columns)


def _mean_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Returns the model's own loss; language models shift labels that stand in their places themselves."""
    loss: Tensor | None = model(**batch.inputs, **batch.targets).loss
    if loss is None:
        raise DataError(f"{type(model).__name__} gives no loss: per: batch needs labels in the data")
    if not bool(loss.isfinite()):
        raise DataError(
            f"the loss of a batch is {loss.item()}: look for NaN or Inf in the weights and the labels"
        )
    return loss


@runtime_checkable
class Passes(Protocol):
    """What is carried back through one forward pass, and how often."""

    def passes(self, model: PreTrainedModel, batch: Batch) -> Iterator[Backward]:
        """Yields the backward passes of one forward pass."""


@dataclass(frozen=True)
class Probe:
    """One random direction of the outputs, the same for every example: labels play no part."""

    def passes(self, model: PreTrainedModel, batch: Batch) -> Iterator[Backward]:
        """Yields one backward pass."""
        logits = read_logits(model, model(**batch.inputs), batch).values
        draw = torch.Generator().manual_seed(0)
        direction = torch.randn(logits.shape[1:], generator=draw).to(logits)
        yield logits, direction.expand_as(logits), False


def backward_passes(
    model: PreTrainedModel, batch: Batch, objective: Passes, leaves: Sequence[Tensor]
) -> Iterator[None]:
    """Runs forward once, then backward to `leaves` (which hooks may fill during forward) and yields after each."""
    for output, cotangent, more in objective.passes(model, batch):
        if leaves and output.requires_grad:
            torch.autograd.grad(output, leaves, cotangent, retain_graph=more, allow_unused=True)
        yield


def parameter_gradients(
    model: PreTrainedModel, batch: Batch, objective: Passes, parameters: Mapping[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Yields plain autograd's gradients of the whole batch, one dictionary per backward pass; unused ones left out."""
    names, tensors = list(parameters), list(parameters.values())
    for output, cotangent, more in objective.passes(model, batch):
        gradients = torch.autograd.grad(output, tensors, cotangent, retain_graph=more, allow_unused=True)
        yield {name: value for name, value in zip(names, gradients, strict=True) if value is not None}
