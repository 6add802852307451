"""Heads fitted to a merged encoder: an affine map of its states, folded into the head's first layer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plait.merging.algebra import solved
from plait.merging.merged import Merged
from plait.merging.refinement.answers import Answers, Form, SourceTexts, ask, batched, cut, source_of
from plait.merging.refinement.files import write_back
from plait.merging.refinement.model import Head, MultiTask, has_own_pooler
from plait.placement import accelerated

logger = logging.getLogger("plait")
Map = Literal["shift", "ridge"]


def align_heads(
    folder: Path, sources: Sequence[SourceTexts], kind: Map, *, ridge: float, max_length: int | None
) -> dict[str, Any]:
    """Returns by task the states' squared error before and after; the heads in `folder` have been fitted in place.

    Costs nothing at inference: W' = W A, b' = b + W c for the layer W, b that reads the states, h_source ≈ A h + c.

    Args:
        folder: a merged checkpoint that nobody else reads yet.
        sources: the sources with their texts; a task of several sources is left as it is.
        kind: `shift` moves by the mean difference (A = I), `ridge` fits A too.
        ridge: strength of the pull of A towards I, relative to the variance of the states.
        max_length: tokens a text is cut at.
    """
    merged, found = Merged(folder), {}
    tasks = [source.task for source in sources]
    for source in sources:
        if tasks.count(source.task) > 1 or merged.about(source.task).kind == "body":
            logger.warning("task %s: its head is not aligned, it has several sources, or none", source.task)
            continue
        model = merged.task(source.task).float()
        own = has_own_pooler(model, merged.encoder)
        target = ask(source, on="hidden", max_length=max_length, own_pooler=own)
        head = Head(model, own_pooler=own)
        network = MultiTask(merged.encoder.float(), [head], [0], own_pooler=own).eval()
        states, layer = states_of(network, target)
        if kind == "shift" and layer.bias is None:
            logger.warning("task %s: its head has no bias to shift; --align-heads ridge fits it", source.task)
            continue
        found[source.task] = fold(layer, states, torch.cat([rows(v) for v in target.said]), kind, ridge)
    write_back(folder, merged, found, encoder=False)
    return found


def rows(values: Tensor) -> Tensor:
    """Returns states as rows: one of a text, or one of each token."""
    return values.reshape(-1, values.shape[-1])


def states_of(network: MultiTask, texts: Answers) -> tuple[Tensor, nn.Linear]:
    """Returns what the head reads of the texts, [rows, d], and the layer that reads it."""
    said: list[Tensor] = [torch.empty(0)] * len(texts.said)
    head: Any = network.heads[0]
    with torch.inference_mode(), accelerated(network) as device:
        for numbers, inputs in batched(texts.encoded, device=device):
            [found] = network(source_of(numbers, device), hidden=True, **inputs).values()
            for number, values in zip(numbers, found.cpu(), strict=True):
                length = len(texts.encoded.features[number]["input_ids"])
                said[number] = cut(values, Form.HIDDEN, length).clone()
        output = network.encoder(**inputs)
        layer = head.first_linear(output.last_hidden_state, getattr(output, "pooler_output", None), inputs)
    return torch.cat([rows(values) for values in said]), layer


def fold(layer: nn.Linear, states: Tensor, target: Tensor, kind: Map, ridge: float) -> dict[str, float]:
    """Returns the mean squared error before and after, in variances of the target; the layer now reads A h + c.

    Args:
        layer: W [out, d] and b.
        states: h of the merged encoder, [n, d].
        target: h of the source, [n, d].
        kind: see `align_heads`.
        ridge: ε in min Σ ‖A h + c − h_source‖² + ε·n·v ‖A − I‖², v the mean variance of h (its mean square where the
            layer has no bias, and so c is 0).
    """
    h, gap = states.double(), (target - states).double()
    biased = layer.bias is not None
    centre, mean_gap = (h.mean(0), gap.mean(0)) if biased else (h.new_zeros(h.shape[1]), h.new_zeros(h.shape[1]))
    change = h.new_zeros(h.shape[1], h.shape[1])
    if kind == "ridge":
        x, y = h - centre, gap - mean_gap
        gram = x.T @ x
        change = solved(gram, x.T @ y, ridge * float(gram.diagonal().mean())).T
    shift = mean_gap - change @ centre
    weight = layer.weight.detach().double()
    with torch.no_grad():
        layer.weight.copy_(weight + weight @ change)
        if biased:
            layer.bias.copy_(layer.bias.double() + weight @ shift)
    spread = float(target.double().var(0, correction=0).mean()) or 1.0
    left = gap - h @ change.T - shift
    return {name: float(e.square().mean()) / spread for name, e in (("before", gap), ("after", left))}
