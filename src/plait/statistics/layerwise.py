"""An encoder run from the bottom up, a stage at a time, while its weights are being replaced.

A stage is a group of linear layers that read one tensor, or a norm. What enters a stage is computed with everything
below it as it is by then. Layers below are not computed again, and no product of a stage that is settled is, unless its
output is wider than its input: 12 d² of products and 19 d² of Gram matrices a token and layer for a BERT, as in one
ordinary pass, and 4 d² for the wide output of the feed-forward layer, computed again rather than kept. Kept are 6 d
numbers a token: what entered the layer, and the narrow outputs in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from plait.encoders.replay import encoder_of

BELOW = -1
"""The place below the first layer: projections of the embeddings."""


@dataclass(frozen=True)
class Stage:
    """Modules that read the same tensor: linear layers, or one norm; paths are relative to the body."""

    paths: tuple[str, ...]
    norm: bool


class _Reached(Exception):  # noqa: N818 (not an error: it ends a pass that has seen enough)
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def layers_of(body: PreTrainedModel) -> tuple[nn.Module, ...] | None:
    """Returns an encoder's layers in order; None where they are unknown or applied several times (ALBERT)."""
    found = encoder_of(body)
    return None if found is None or len(found.modules) != found.depth else found.modules


@dataclass
class Layerwise:
    """One pass of a body over batches that stops at every stage; use `at` and `advance` from the bottom up.

    Attributes:
        body: the encoder, whose weights somebody else sets between the stages.
        layers: its layers.
        batches: inputs with an `attention_mask`.
        place: the layer that is open; `BELOW` at first.
    """

    body: PreTrainedModel
    layers: Sequence[nn.Module]
    batches: Sequence[Mapping[str, Tensor]]
    place: int = BELOW
    _below: list[Any] = field(default_factory=list)
    _kept: dict[nn.Module, dict[int, Tensor]] = field(default_factory=dict)

    def stages(self, *, norms: bool) -> list[Stage]:
        """Returns the stages of the open layer in the order in which a pass comes to them."""
        names = {module: name for name, module in self.body.named_modules()}
        found: list[tuple[Tensor, list[str], bool]] = []

        def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            linear = isinstance(module, nn.Linear | Conv1D)
            if not linear and not norms:
                return
            if linear and found and not found[-1][2] and found[-1][0] is arguments[0]:
                found[-1][1].append(names[module])
            else:
                found.append((arguments[0], [names[module]], not linear))

        watched = [m for m in self.body.modules() if isinstance(m, nn.Linear | Conv1D | nn.LayerNorm)]
        handles = [module.register_forward_pre_hook(note) for module in watched]
        try:
            self._run(0)
        finally:
            for handle in handles:
                handle.remove()
        mask = self.batches[0].get("attention_mask")
        count = len(next(iter(self.batches[0].values())))
        inside = [one for one in found if self._inside(one[1][0])]
        # What serves a whole batch (a table of relative positions) is no input of a token.
        return [
            Stage(tuple(paths), norm)
            for x, paths, norm in inside
            if x.dim() == 3 and (len(x) == count if mask is None else x.shape[:2] == mask.shape)
        ]

    def _inside(self, path: str) -> bool:
        module = self.body.get_submodule(path)
        layer = self.layers[max(self.place, 0)]
        return (module in set(layer.modules())) == (self.place != BELOW)

    def at(self, stage: Stage) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields for each batch what enters a stage, [b, t, d], and the mask of real tokens, [b, t]."""
        module = self.body.get_submodule(stage.paths[0])
        for number, batch in enumerate(self.batches):
            x = self._run(number, module)
            mask = batch.get("attention_mask")
            yield x, x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.bool()

    def settle(self, stage: Stage) -> None:
        """Says that the weights of a stage will not change any more."""
        for path in stage.paths if not stage.norm else ():
            self._kept[self.body.get_submodule(path)] = {}

    def advance(self) -> None:
        """Computes what leaves the open layer, and opens the next one."""
        self._below = (
            [] if self.place == BELOW else [self._run(number) for number in range(len(self.batches))]
        )
        self._kept.clear()
        self.place += 1

    def _run(self, number: int, until: nn.Module | None = None) -> Any:
        with torch.no_grad(), self._patched(number, until):
            try:
                self.body(**self.batches[number])
            except _Reached as reached:
                return reached.value
        raise AssertionError("a pass went by the open layer")

    @contextmanager
    def _patched(self, number: int, until: nn.Module | None) -> Iterator[None]:
        changed: dict[nn.Module, Callable[..., Any]] = {
            layer: partial(self._layer, place, layer.forward, number) for place, layer in enumerate(self.layers)
        }
        for module in self._kept:
            changed[module] = partial(self._settled, module, module.forward, number)
        if until is not None:
            changed[until] = _stop
        for module, forward in changed.items():
            module.forward = forward
        try:
            yield
        finally:
            for module in changed:
                del module.forward

    def _layer(self, place: int, original: Callable[..., Any], number: int, *args: Any, **kwargs: Any) -> Any:
        if place < self.place:
            return self._below[number]
        if self.place == BELOW:
            raise _Reached(None)
        raise _Reached(original(*args, **kwargs))

    def _settled(self, module: nn.Module, original: Callable[..., Any], number: int, x: Tensor) -> Tensor:
        kept = self._kept[module]
        # DeBERTa projects its table of relative positions by the same layers: that is another input.
        mask = self.batches[number].get("attention_mask")
        of_tokens = mask is None or x.shape[:-1] == mask.shape
        if of_tokens and number in kept:
            return kept[number]
        found: Tensor = original(x)
        if of_tokens and found.shape[-1] <= x.shape[-1]:
            kept[number] = found
        return found


def _stop(x: Tensor, *_: Any, **__: Any) -> Tensor:
    raise _Reached(x)
