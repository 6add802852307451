"""Heads fitted to a merged encoder: an affine map of its states, folded into the head's first layer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plait.encoders.modes import accelerated
from plait.merging.algebra import solved
from plait.merging.merged import Merged
from plait.merging.refinement.answers import Answers, Form, SourceTexts, ask, batched, cut, source_of
from plait.merging.refinement.files import write_back
from plait.merging.refinement.model import Head, MultiTask, has_own_pooler

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
        teacher = source.load().eval()
        own = has_own_pooler(merged.task(source.task), merged.encoder)
        given = replace(source, load=partial(_itself, teacher))
        target = ask(given, on="hidden", max_length=max_length, own_pooler=own)
        pairs = [(teacher.base_model, teacher), (merged.encoder.float(), merged.task(source.task).float())]
        networks = [
            MultiTask(cast(Any, body), [Head(model, own_pooler=own)], [0], own_pooler=own).eval()
            for body, model in pairs
        ]
        # Begin at the source's own layer: fitting twice is fitting once.
        theirs, layer = (first_layer(network, target) for network in networks)
        layer.load_state_dict(theirs.state_dict())
        if kind == "shift" and layer.bias is None:
            logger.warning("task %s: its head has no bias to shift; --align-heads ridge fits it", source.task)
            continue
        states = states_of(networks[1], target)
        found[source.task] = fold(layer, states, torch.cat([rows(v) for v in target.said]), kind, ridge)
    write_back(folder, merged, found, encoder=False)
    return found


def rows(values: Tensor) -> Tensor:
    """Returns states as rows: one of a text, or one of each token."""
    return values.reshape(-1, values.shape[-1])


def _itself(model: PreTrainedModel) -> PreTrainedModel:
    return model


def states_of(network: MultiTask, texts: Answers) -> Tensor:
    """Returns what the head reads of the texts, [rows, d]."""
    said: list[Tensor] = [torch.empty(0)] * len(texts.said)
    with torch.inference_mode(), accelerated(network) as device:
        for numbers, inputs in batched(texts.encoded, device=device):
            [found] = network(source_of(numbers, device), hidden=True, **inputs).values()
            for number, values in zip(numbers, found.cpu(), strict=True):
                length = len(texts.encoded.features[number]["input_ids"])
                said[number] = cut(values, Form.HIDDEN, length).clone()
    return torch.cat([rows(values) for values in said])


def first_layer(network: MultiTask, texts: Answers) -> nn.Linear:
    """Returns the linear layer of the head that reads the encoder's states."""
    head: Any = network.heads[0]
    device = next(network.parameters()).device
    with torch.no_grad():
        _, inputs = next(batched(texts.encoded, [0], device=device))
        output = network.encoder(**inputs)
        found = head.first_linear(output.last_hidden_state, getattr(output, "pooler_output", None), inputs)
    assert found is not None, "a head without a linear layer"
    return found  # type: ignore[no-any-return]


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
