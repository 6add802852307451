"""Gram matrices of what enters each linear layer, for RegMean."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from plait.encoders.heads import language_kind
from plait.errors import MergeError
from plait.processes import summed
from plait.statistics.backward import Objective
from plait.statistics.batch import Batch
from plait.statistics.estimator import ESTIMATORS, body_name


class _EnoughError(Exception):
    """Ends a pass before the product with a vocabulary, which says nothing of any layer's inputs."""


def _stop(_: nn.Module, __: tuple[Any, ...]) -> None:
    raise _EnoughError


@dataclass
class _Sum:
    """XᵀX of one layer so far, and of how many rows."""

    total: Tensor | None = None
    rows: float = 0

    def add(self, gram: Tensor, rows: float) -> None:
        self.total = gram.clone() if self.total is None else self.total.add_(gram)
        self.rows += rows

    def pool(self, width: int) -> None:
        self.rows = float(summed(torch.tensor(self.rows, dtype=torch.float64)))
        if self.rows:
            self.total = summed(torch.zeros(width, width) if self.total is None else self.total)

    def mean(self) -> Tensor | None:
        return None if self.total is None else self.total / self.rows


@dataclass
class Gram:
    """Running Gram matrices, one per linear layer."""

    model: PreTrainedModel
    _sums: dict[str, _Sum] = field(default_factory=dict)
    _paths: dict[str, str] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)
    _batch: Batch | None = None
    # Query, key and value are given the very same tensor, one after the other: its product is taken once.
    _last: tuple[Tensor, Tensor, float] | None = None
    _share: float = 1.0

    def __post_init__(self) -> None:
        """Hooks the linear layers."""
        # Weights that two layers share, such as a table of words that also gives logits, are no product of one input.
        owners = {id(value): name for name, value in self.model.named_parameters()}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear | Conv1D) and owners.get(id(module.weight)) == f"{name}.weight":
                key = body_name(self.model, f"{name}.weight")
                self._sums[key] = _Sum()
                self._paths[key] = name
                self._handles.append(module.register_forward_pre_hook(self._hook(key)))
        last = self.model.get_output_embeddings() if language_kind(self.model) else None
        if last is not None:
            self._handles.append(last.register_forward_pre_hook(_stop))

    def _hook(self, key: str) -> Any:
        def add(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs = arguments[0]
            if self._last is None or self._last[0] is not inputs:
                self._last = (inputs, *self._product(key, inputs))
            self._sums[key].add(*self._last[1:])

        return add

    def _product(self, key: str, inputs: Tensor) -> tuple[Tensor, float]:
        """Returns XᵀX and the number of rows of X: real tokens, or whatever serves a whole batch, once per example."""
        assert self._batch is not None
        masks, times = (self._batch.mask, self._batch.decoded), 1.0
        mask = next((mask for mask in masks if inputs.dim() == 3 and inputs.shape[:2] == mask.shape), None)
        flat = inputs.dim() == 2 and inputs.shape[0] == masks[0].numel()  # in a mixture, tokens lie end to end
        if self._batch.whole and inputs.shape[0] == self._batch.count:
            rows = inputs.flatten(0, -2)
        elif mask is not None:
            rows = inputs[mask]
        elif flat:
            rows = inputs[masks[0].flatten()]
        elif inputs.dim() == 3 and inputs.shape[0] == masks[0].shape[0]:
            raise MergeError(
                f"{key} sees {inputs.shape[1]} of {masks[0].shape[1]} tokens at a time; set chunk_size_feed_forward "
                "to 0"
            )
        else:
            rows = inputs.flatten(0, -2)
            times = 1.0 if inputs.dim() == 2 else float(masks[0].shape[0])
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        times = times * self._share
        return (rows.T @ rows).mul_(times), times * rows.shape[0]

    def see(self, batch: Batch) -> None:
        """Adds a batch; one example alone goes in twice, so that what serves a whole batch can be told from it."""
        self._batch = (batch if batch.count > 1 else batch.copies(2, batch.width)).apart()
        self._share = batch.count / self._batch.count
        with torch.no_grad(), suppress(_EnoughError):
            self.model(**self._batch.inputs)
        self._last = None

    def pool(self) -> None:
        """Adds up the sums of all processes; one that has seen no batch adds nothing."""
        for name, running in self._sums.items():
            module = self.model.get_submodule(self._paths[name])
            weight = self.model.get_parameter(f"{self._paths[name]}.weight")
            running.pool(weight.shape[0 if isinstance(module, Conv1D) else 1])

    def result(self, examples: int) -> Mapping[str, Tensor]:  # noqa: ARG002 (rows are counted instead)
        """Returns XᵀX / rows by the name of the weight; layers that see the same inputs share one tensor."""
        found: dict[str, Tensor] = {}
        before: Tensor | None = None
        for name, running in self._sums.items():
            if (gram := running.mean()) is not None:
                before = before if before is not None and torch.equal(before, gram) else gram
                found[name] = before
        return found

    def close(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()


@ESTIMATORS.register(
    "gram",
    needs=("data",),
    paper="arXiv:2212.09849",
    when="Statistics for regmean, to share in place of texts.",
)
def gram(model: PreTrainedModel, objective: Objective) -> Gram:  # noqa: ARG001 (no label plays a part)
    """Returns for each linear layer the Gram matrix of its inputs.

    G = XᵀX / n over the n real tokens (section 2); padding does not count. Needs a forward pass only, and no labels.
    A layer applied several times (ALBERT) counts each application; one that reads a table of positions for the whole
    batch (DeBERTa) counts the table once per example, so that the batch size plays no part. Experts of a mixture, whose
    weights are one tensor, have none, nor has a head that shares its weight with the word table.
    """
    return Gram(model)
