"""Merging in forward order: the statistics of a layer come from the model whose lower layers are merged already."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.embedders import is_embedder, read_as
from plait.checkpoints.sealed import read_sealed, write_sealed
from plait.data import collate, encode, plan
from plait.errors import MergeError
from plait.evaluation.embedding import encoded_texts
from plait.merging import chunks
from plait.merging.calibration import LinearMoments, NormMoments, fitted_bias, fitted_norm
from plait.merging.chunks import TensorSource
from plait.merging.engine import combine
from plait.merging.plan import Plan
from plait.merging.rule import RULES, RuleEntry
from plait.progress import task
from plait.statistics.embedding import single_texts
from plait.statistics.layerwise import BELOW, Layerwise, Stage, layers_of

Batches = Sequence[Mapping[str, Tensor]]


class Nothing:
    """Statistics of nothing yet: every parameter starts as the rule's average."""

    def of(self, parameter: str) -> Tensor | None:  # noqa: ARG002 (of any)
        """Returns None."""
        return None


@dataclass(frozen=True)
class ForwardMerge:
    """What is merged in forward order.

    Attributes:
        sources: the sources' bodies, in order.
        rule: `regmean`, or `calibrate`, which also wants what enters the layers of the sources.
        weights: λ.
        options: of the rule.
        batches: of each source its texts, as inputs of the encoder.
        state: a folder where finished layers are kept for a run that is stopped, or None.
    """

    sources: Sequence[TensorSource]
    rule: RuleEntry
    weights: Tensor
    options: Mapping[str, Any]
    batches: Sequence[Batches]
    state: Path | None = None

    @property
    def calibrating(self) -> bool:
        """Returns whether the rule also wants what enters the layers of the sources."""
        return "crosses" in self.rule.inputs

    def run(self, body: PreTrainedModel, donor: PreTrainedModel | None) -> dict[str, Tensor]:
        """Returns the merged parameters that belong to `body`, in float32.

        Args:
            body: an encoder of the sources' kind in evaluation mode; its weights are replaced by the merged ones.
            donor: another one, whose weights are lent by the sources in turn; needed to calibrate.

        Raises:
            MergeError: the layers of this encoder are not known, or are applied several times.
        """
        names = [name for name, _ in body.named_parameters() if all(name in s for s in self.sources)]
        self._start(body, names)
        layers = layers_of(body)
        if layers is None:
            raise MergeError(
                f"{type(body).__name__}: the forward order of its layers is not known: use --method regmean without "
                "--forward"
            )
        runs = [Layerwise(body, layers, batches) for batches in self.batches]
        lent = [None] * len(runs) if donor is None else self._lent(donor)
        with task(f"merging by {self.rule.name}, from the bottom up", len(layers) + 1) as tick:
            for place in range(BELOW, len(layers)):
                self._layer(body, place, runs, lent)
                tick(1)
        return {name: body.get_parameter(name).detach().clone() for name in names}

    def _option(self, name: str) -> float:
        """Returns an option of the rule, or its default."""
        return float(self.options.get(name, self.rule.options[name].default))

    def _start(self, body: PreTrainedModel, names: Sequence[str]) -> None:
        """Gives a body the rule's merge without statistics: the average."""
        start = combine(
            self.sources, names, RULES["average"], weights=self.weights.tolist(), dtype=torch.float32
        )
        with torch.no_grad():
            for name, tensor in start:
                body.get_parameter(name).copy_(tensor)

    def _lent(self, donor: PreTrainedModel) -> list[Lent]:
        layers = layers_of(donor)
        assert layers is not None
        return [
            Lent(source, Layerwise(donor, layers, batches))
            for source, batches in zip(self.sources, self.batches, strict=True)
        ]

    def _layer(
        self, body: PreTrainedModel, place: int, runs: Sequence[Layerwise], lent: Sequence[Lent | None]
    ) -> None:
        """Merges one layer, or takes it from a run that was stopped, and lets all texts through."""
        file = None if self.state is None else self.state / f"layer{place}.safetensors"
        if file is not None and (kept := read_sealed(file)) is not None:
            with torch.no_grad():
                for name, tensor in kept[0].items():
                    body.get_parameter(name).copy_(tensor)
        else:
            merged: dict[str, Tensor] = {}
            for stage in runs[0].stages(norms=self.calibrating):
                merged |= self._settle(body, stage, runs, lent)
                for run in (*runs, *(one.run for one in lent if one is not None)):
                    run.settle(stage)
            if file is not None and merged:
                write_sealed(file, merged)
        for run in runs:
            run.advance()
        for one in lent:
            if one is not None:
                one.load(place)
                one.run.advance()

    def _settle(
        self, body: PreTrainedModel, stage: Stage, runs: Sequence[Layerwise], lent: Sequence[Lent | None]
    ) -> dict[str, Tensor]:
        """Returns the merged parameters of a stage, which `body` has from now on."""
        found = self._norm(body, stage, runs, lent) if stage.norm else self._linear(body, stage, runs, lent)
        with torch.no_grad():
            for name, tensor in found.items():
                body.get_parameter(name).copy_(tensor)
        return found

    def _linear(
        self, body: PreTrainedModel, stage: Stage, runs: Sequence[Layerwise], lent: Sequence[Lent | None]
    ) -> dict[str, Tensor]:
        own = self._option("own") if self.calibrating else 1.0
        moments = [LinearMoments() for _ in runs]
        for one, run, other in zip(moments, runs, lent, strict=True):
            if other is not None:
                other.load(run.place)
                for (x, mask), (y, _) in zip(run.at(stage), other.run.at(stage), strict=True):
                    one.add(x[mask], y[mask], own)
            else:
                for x, mask in run.at(stage):
                    one.add(x[mask], None, own)
        inputs: dict[str, Any] = {"grams": torch.stack([m.gram / m.count for m in moments])}
        if self.calibrating:
            inputs["crosses"] = torch.stack([m.cross / m.count for m in moments])
        found: dict[str, Tensor] = {}
        for path in stage.paths:
            params = torch.stack([source.read(f"{path}.weight").float() for source in self.sources])
            turned = isinstance(body.get_submodule(path), Conv1D)
            params = params.mT if turned else params
            merged = self.rule.function(params=params, weights=self.weights, **inputs, **self.options)
            if not bool(torch.isfinite(merged).all()):
                raise MergeError(f"{path}.weight: {self.rule.name} gives NaN or Inf")
            found[f"{path}.weight"] = merged.T if turned else merged
            if self.calibrating and body.get_submodule(path).bias is not None:
                biases = [source.read(f"{path}.bias").float() for source in self.sources]
                shares = self.weights.tolist()
                found[f"{path}.bias"] = fitted_bias(merged, list(params), biases, moments, shares)
        return found

    def _norm(
        self, body: PreTrainedModel, stage: Stage, runs: Sequence[Layerwise], lent: Sequence[Lent | None]
    ) -> dict[str, Tensor]:
        [path] = stage.paths
        norm: Any = body.get_submodule(path)
        own = self._option("own") if self.calibrating else 1.0
        moments = [NormMoments() for _ in runs]
        for one, run, other in zip(moments, runs, lent, strict=True):
            assert other is not None
            other.load(run.place)
            theirs: Any = other.run.body.get_submodule(path)
            for (x, mask), (y, _) in zip(run.at(stage), other.run.at(stage), strict=True):
                target = _normed(theirs, x[mask]).lerp(_normed(theirs, y[mask]), own)
                one.add(F.layer_norm(x[mask], norm.normalized_shape, eps=norm.eps), target)
        scale, shift = fitted_norm(
            norm.weight.detach(),
            None if norm.bias is None else norm.bias.detach(),
            moments,
            self.weights.tolist(),
            self._option("ridge"),
        )
        return {f"{path}.weight": scale, **({} if shift is None else {f"{path}.bias": shift})}


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Returns what a norm gives, without the wrapper that a pass may have put around it."""
    with torch.no_grad():
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


@dataclass
class Lent:
    """A source that lends its weights, a layer at a time, to a body that all sources share."""

    source: TensorSource
    run: Layerwise

    def load(self, place: int) -> None:
        """Gives the shared body this source's weights of one layer and of all that lies outside the layers."""
        layers = self.run.layers
        others = {id(p) for i, layer in enumerate(layers) if i != max(place, 0) for p in layer.parameters()}
        if place > 1:
            # The largest table; nobody reads it from here on (DeBERTa's convolution does, below the second layer).
            others |= {id(p) for p in self.run.body.get_input_embeddings().parameters()}
        with torch.no_grad():
            for name, parameter in self.run.body.named_parameters():
                if id(parameter) not in others and name in self.source:
                    parameter.copy_(self.source.read(name))


def merge_forward(job: Plan, state: Path) -> dict[str, Tensor]:
    """Returns the merged parameters of the encoder, in float32; finished layers are kept in `state`.

    Raises:
        MergeError: an encoder without a single forward order, or a result that is not finite.
    """
    weights = job.recipe.weights()
    merge = ForwardMerge(
        [chunks.body(source) for source in job.sources],
        job.rule,
        torch.ones(len(job.sources)) if weights is None else torch.tensor(weights),
        job.method.options,
        [batches_of(job, source) for source in job.sources],
        state / "layers",
    )
    # With its head, a language model loads without a word about what is left over.
    first = job.sources[0]
    body = first.model(language=first.objective is not None, dtype=torch.float32).base_model
    donor = copy.deepcopy(body) if merge.calibrating else None
    return merge.run(cast(PreTrainedModel, body), cast("PreTrainedModel | None", donor))


def batches_of(job: Plan, source: Checkpoint) -> list[dict[str, Tensor]]:
    """Returns a source's texts as inputs of its encoder, similar lengths together."""
    examples = job.inputs.examples[source.name].unlabelled()
    tokenizer, longest = source.tokenizer(), job.method.max_length
    if is_embedder(source):
        texts, told = single_texts(examples).texts, read_as(source.folder, tokenizer)
        encoded = encoded_texts(texts, tokenizer, told, source.config, max_length=longest)
    else:
        encoded = encode(examples, tokenizer, max_length=longest, config=source.config, labels=False)
    return [
        collate([encoded.features[row] for row in rows], encoded.padding)
        for rows in plan(encoded, job.method.batch_size)
    ]
