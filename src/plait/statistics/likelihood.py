"""The likelihood a head defines, and its gradients at the logits: which labels the Fisher is taken over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plait.encoders.heads import language_kind
from plait.errors import DataError, RecipeError, did_you_mean
from plait.statistics.batch import Batch
from plait.statistics.shapes import Blocks, Columns, Roots, Rows

Labels = Literal["given", "sampled", "exact"]
LABELS: tuple[Labels, ...] = ("given", "sampled", "exact")
IGNORED = -100
VOCABULARY = 1024
"""Labels from which on they are taken for words: a column of a square root each would never end."""
ROWS = 64
"""Tokens whose words are looked at together."""


class Head(StrEnum):
    """How the logits of a model are distributed over its labels."""

    CLASS = "one label of C per text"
    TOKEN = "one label of C per labelled token, tokens independent"
    NEXT = "each token of a text given those before it: its label stands one place further on"
    SPAN = "first and last token of an answer, independent, over the real tokens"
    MULTI_LABEL = "C independent yes-or-no labels per text"
    REGRESSION = "a number with Gaussian noise of variance 1"


@dataclass(frozen=True)
class Logits:
    """A model's answer as [batch, variables, values]: one row per random variable."""

    head: Head
    values: Blocks


def read_logits(model: PreTrainedModel, outputs: Any, batch: Batch) -> Logits:
    """Returns the logits of any head in one shape; raises `DataError` where there are none, or they are not finite."""
    if getattr(outputs, "start_logits", None) is not None:
        logits = Logits(Head.SPAN, torch.stack((outputs.start_logits, outputs.end_logits), dim=1))
    elif (values := getattr(outputs, "logits", None)) is None:
        raise DataError(
            f"{type(model).__name__} has no task head, so no likelihood: give a model with a head"
        )
    elif values.dim() == 3:
        logits = Logits(Head.NEXT if language_kind(model) == "causal" else Head.TOKEN, values)
    else:
        logits = Logits(_sequence_head(model.config, batch), values.unsqueeze(1))
    # A sum is finite where all are, and needs no table of a vocabulary's size.
    if not bool(logits.values.detach().sum(dtype=torch.promote_types(logits.values.dtype, torch.float32)).isfinite()):
        raise DataError(
            f"{type(model).__name__} gives logits that are not finite: look for NaN or Inf in its weights"
        )
    return logits


def _sequence_head(config: Any, batch: Batch) -> Head:
    if (known := getattr(config, "problem_type", None)) is not None:
        return {"regression": Head.REGRESSION, "multi_label_classification": Head.MULTI_LABEL}.get(
            known, Head.CLASS
        )
    if config.num_labels == 1:
        return Head.REGRESSION
    labels = batch.targets.get("labels")
    return Head.MULTI_LABEL if labels is not None and labels.is_floating_point() else Head.CLASS


@dataclass(frozen=True)
class Cotangents:
    """The gradients of −log p(y|x) at the logits whose squares, carried back and added up, make the Fisher.

    given: one, at the labels of the data. sampled: one, at labels drawn from the model. exact: the expectation over
    the model's own distribution: columns of L with LLᵀ = the covariance of the label (C−1 for C classes); above
    `passes` of them one random combination L s, s = ±1, which is right on average. In language models, what is drawn or
    averaged over is each token given the tokens of the data before it.
    """

    labels: Labels = "given"
    passes: int = 16

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            raise RecipeError(f"unknown labels {self.labels!r}{did_you_mean(self.labels, LABELS)}")

    def __call__(self, logits: Logits, batch: Batch) -> Iterator[Blocks]:
        """Yields the cotangents of the batch, one per backward pass."""
        if self.labels == "given":
            check_targets(logits, batch)
        if logits.values.shape[-1] >= VOCABULARY and logits.head in (Head.TOKEN, Head.NEXT):
            yield self._over_vocabulary(logits, batch)
            return
        parts = [self._example(logits, batch, number) for number in range(batch.count)]
        for column in range(max((part.shape[0] for _, _, part in parts), default=0)):
            cotangent = torch.zeros_like(logits.values)
            for number, (rows, values, part) in enumerate(parts):
                if column < part.shape[0]:
                    cotangent[number, rows.unsqueeze(1), values] = part[column].to(cotangent)
            yield cotangent

    def _over_vocabulary(self, logits: Logits, batch: Batch) -> Blocks:
        """Returns the only cotangent where labels are many, computed in the model's precision, at least float32."""
        z = logits.values.detach()
        dtype = torch.promote_types(z.dtype, torch.float32)
        cotangent = torch.zeros_like(z)
        for number in range(batch.count):
            rows, _ = _live(logits, batch, number)
            draw = torch.Generator().manual_seed(batch.seeds[number])
            for some in rows.split(ROWS):
                if self.labels == "given":
                    found = z[number, some].to(dtype).softmax(-1)
                    labels = _given(logits.head, batch, number, some, some).to(z.device)
                    found[torch.arange(len(some), device=z.device), labels] -= 1.0
                else:
                    exact = z[number, some].double().cpu()
                    label = sample(logits.head, exact, draw) if self.labels == "sampled" else None
                    found = (
                        signed_root(logits.head, exact, draw)
                        if label is None
                        else residual(logits.head, exact, label)
                    )
                cotangent[number, some] = found.to(cotangent)
        return cotangent

    def _example(self, logits: Logits, batch: Batch, number: int) -> tuple[Tensor, Tensor, Columns]:
        rows, values = _live(logits, batch, number)
        # float64: probabilities near 0 and 1 are squared, and these few numbers cost nothing.
        z = logits.values.detach()[number, rows.unsqueeze(1), values].double().cpu()
        draw = torch.Generator().manual_seed(batch.seeds[number])
        if self.labels == "given":
            columns = residual(logits.head, z, _given(logits.head, batch, number, rows, values)).unsqueeze(0)
        elif self.labels == "sampled":
            columns = residual(logits.head, z, sample(logits.head, z, draw)).unsqueeze(0)
        elif width(logits.head, z) <= self.passes:
            columns = square_root(logits.head, z)
        else:
            columns = signed_root(logits.head, z, draw).unsqueeze(0)
        return rows, values, columns


def _live(logits: Logits, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
    """Returns which variables of one example count, and which of their values are possible."""
    _, rows, values = logits.values.shape
    device = logits.values.device
    every = torch.arange(values, device=device)
    if logits.head is Head.SPAN:
        return torch.arange(rows, device=device), batch.mask[number].nonzero().flatten()
    if logits.head is Head.NEXT:
        labels = batch.targets.get("labels")
        counted = batch.mask[number] if labels is None else labels[number] != IGNORED
        return counted[1:rows].nonzero().flatten(), every
    if logits.head is Head.TOKEN:
        labels = batch.targets.get("labels")
        counted = batch.mask[number] if labels is None else labels[number, :rows] != IGNORED
        return counted.nonzero().flatten(), every
    return torch.arange(rows, device=device), every


def check_targets(logits: Logits, batch: Batch) -> None:
    """Raises `DataError` when labels are missing or outside the range of the head."""
    needed = ("start_positions", "end_positions") if logits.head is Head.SPAN else ("labels",)
    if missing := [name for name in needed if name not in batch.targets]:
        raise DataError(f"no {' and '.join(missing)} in the data; give them, or use labels sampled or exact")
    if logits.head in (Head.CLASS, Head.TOKEN, Head.NEXT):
        _check_range(batch.targets["labels"], logits.values.shape[-1])
    elif not bool(torch.stack([batch.targets[name].isfinite().all() for name in needed]).all()):
        raise DataError("labels hold NaN or Inf; expected numbers")


def _check_range(labels: Tensor, classes: int) -> None:
    if labels.is_floating_point():
        raise DataError(f"labels are {labels.dtype}; expected whole numbers from 0 to {classes - 1}")
    outside = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))].unique().tolist()
    if outside:
        raise DataError(f"labels {outside} are outside the head's range 0 to {classes - 1}")


def _given(head: Head, batch: Batch, number: int, rows: Tensor, values: Tensor) -> Tensor:
    if head is Head.SPAN:
        ends = (batch.targets["start_positions"][number], batch.targets["end_positions"][number])
        found = [(values == end).nonzero().flatten().tolist() or [IGNORED] for end in ends]
        return torch.tensor([places[0] for places in found])
    labels = batch.targets["labels"][number].cpu()
    if head in (Head.TOKEN, Head.NEXT):
        return labels[rows.cpu() + (head is Head.NEXT)]
    return labels.reshape(1) if head is Head.CLASS else labels.reshape(1, -1).double()


def residual(head: Head, z: Rows, y: Tensor) -> Rows:
    """Returns ∂(−log p(y))/∂z: softmax(z) − onehot(y), σ(z) − y, or z − y; zero where a label is ignored."""
    if head is Head.REGRESSION:
        return z - y
    if head is Head.MULTI_LABEL:
        return z.sigmoid() - y
    counted = (y != IGNORED).unsqueeze(1)
    return (z.softmax(1) - torch.zeros_like(z).scatter_(1, y.clamp(min=0).unsqueeze(1), 1.0)) * counted


def sample(head: Head, z: Rows, draw: torch.Generator) -> Tensor:
    """Returns labels drawn from the model's own distribution."""
    if head is Head.REGRESSION:
        return z + torch.randn(z.shape, generator=draw, dtype=z.dtype)
    if head is Head.MULTI_LABEL:
        return (torch.rand(z.shape, generator=draw, dtype=z.dtype) < z.sigmoid()).to(z.dtype)
    threshold = torch.rand((z.shape[0], 1), generator=draw, dtype=z.dtype)
    below: Tensor = (z.softmax(1).cumsum(1) <= threshold).sum(1)
    return below.clamp(max=z.shape[1] - 1)


def width(head: Head, z: Rows) -> int:
    """Returns how many columns the square root of the label's covariance has: C−1 per categorical variable."""
    rows, values = z.shape
    return rows * (values if head in (Head.REGRESSION, Head.MULTI_LABEL) else values - 1)


def square_root(head: Head, z: Rows) -> Columns:
    """Returns the columns of L, LLᵀ = the covariance of ∂ log p/∂z under the model, variable by variable."""
    rows, values = z.shape
    if head is Head.REGRESSION:
        roots = torch.eye(values, dtype=z.dtype).expand(rows, -1, -1)
    elif head is Head.MULTI_LABEL:
        roots = (z.sigmoid() * (-z).sigmoid()).sqrt().diag_embed()
    else:
        roots = categorical_root(z)
    columns = torch.zeros(rows, roots.shape[2], rows, values, dtype=z.dtype)
    for row in range(rows):
        columns[row, :, row] = roots[row].T
    return columns.flatten(0, 1)


def _tails(z: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Returns p_j, q_j = Σ_{k>j} p_k and q_{j−1} for j < C−1; summed from the small end, so nothing cancels."""
    p = z.softmax(1)
    tails = p.flip(1).cumsum(1).flip(1)
    return p, tails[:, 1:], tails[:, :-1]


def _inverse_root(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.inf).rsqrt()


def categorical_root(z: Rows) -> Roots:
    """Returns L with LLᵀ = diag(p) − ppᵀ, C−1 columns.

    With q_j = 1 − Σ_{k≤j} p_k:  L_jj = √(p_j q_j / q_{j−1}),  L_ij = −p_i √(p_j / (q_j q_{j−1})) for i > j.
    A column whose q_j has underflowed is zero: nothing is left to distribute.
    """
    p, after, before = _tails(z)
    roots = p[:, :-1].sqrt() * _inverse_root(before)
    below = (-p.unsqueeze(2) * (roots * _inverse_root(after)).unsqueeze(1)).tril(-1)
    return below.diagonal_scatter(roots * after.sqrt(), dim1=1, dim2=2)


def signed_root(head: Head, z: Rows, draw: torch.Generator) -> Rows:
    """Returns L s with random signs s, without forming L: its square is right on average, for one backward pass."""
    categorical = head not in (Head.REGRESSION, Head.MULTI_LABEL)
    shape = (z.shape[0], z.shape[1] - categorical)
    signs = torch.randint(0, 2, shape, generator=draw).to(z.dtype) * 2 - 1
    if head is Head.REGRESSION:
        return signs
    if head is Head.MULTI_LABEL:
        return signs * (z.sigmoid() * (-z).sigmoid()).sqrt()
    p, after, before = _tails(z)
    roots = p[:, :-1].sqrt() * _inverse_root(before) * signs
    above = torch.nn.functional.pad((roots * _inverse_root(after)).cumsum(1), (1, 0))
    return torch.nn.functional.pad(roots * after.sqrt(), (0, 1)) - p * above
