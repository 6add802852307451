"""The encoder's layers from outside: how often each is applied, and the lower ones replayed instead of computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from plait.encoders.topology import TABLES


@dataclass(frozen=True)
class Encoder:
    """The modules applied one after the other, and how many applications make one forward pass."""

    modules: tuple[nn.Module, ...]
    depth: int

    def last(self, count: int) -> tuple[nn.Module, ...]:
        """Returns the modules that the last `count` applications use (ALBERT uses one for several)."""
        share = len(self.modules) / self.depth
        used = dict.fromkeys(int(place * share) for place in range(self.depth - count, self.depth))
        return tuple(self.modules[place] for place in used)


def encoder_of(model: PreTrainedModel) -> Encoder | None:
    """Returns the encoder's layers: by the table of families, else the one list as long as the config says."""
    body, depth = model.base_model, getattr(model.config, "num_hidden_layers", None)
    family = TABLES.get(model.config.model_type)
    if family is not None:
        found = body.get_submodule(family.layer.partition(".{}")[0])
        return Encoder(tuple(found.children()), depth or len(list(found.children())))
    lists = [m for m in body.modules() if isinstance(m, nn.ModuleList) and depth and len(m) == depth]
    return Encoder(tuple(lists[0]), len(lists[0])) if len(lists) == 1 else None


@dataclass
class Meter:
    """Counts rows times layers; `forwards` is that in whole forward passes."""

    depth: int
    applications: int = 0

    @property
    def forwards(self) -> float:
        """Returns how many texts could have gone through the whole encoder once."""
        return self.applications / self.depth

    def reset(self) -> None:
        """Begins again at nothing."""
        self.applications = 0


class Trunk:
    """Keeps what a lower layer gave, and gives it again in place of all layers up to that one.

    Wraps the `forward` of each layer while `watching`. An application of a layer counts when it is computed.
    """

    def __init__(self, encoder: Encoder, below: int, meter: Meter, injected: float = 0.0) -> None:
        """Prepares to replay the first `below` applications; `injected` is dropped from each computed output."""
        self.encoder, self.below, self.meter, self.injected = encoder, below, meter, injected
        self.kept: Any = None
        self.replaying = False
        self._place = 0

    def begin(self, *, replay: bool) -> None:
        """Says that a forward pass follows: one that keeps the trunk's output, or one that replays it."""
        self.replaying, self._place = replay and self.below > 0, 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wraps the layers, and unwraps them at the end."""
        before = [vars(module).get("forward") for module in self.encoder.modules]
        try:
            for module in self.encoder.modules:
                module.forward = partial(self._forward, module, module.forward)
            yield
        finally:
            for module, own in zip(self.encoder.modules, before, strict=True):
                vars(module).pop("forward", None)
                if own is not None:
                    module.forward = own
            self.kept = None

    def _forward(self, module: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        place, self._place = self._place, self._place + 1
        if self.replaying and place < self.below:
            return self.kept
        states: Tensor = args[0] if args else kwargs["hidden_states"]
        self.meter.applications += states.shape[0]
        found = original(*args, **kwargs)
        if self.injected and module.training:
            found = _dropped(found, self.injected)
        if place == self.below - 1:
            self.kept = found
        return found


def _dropped(output: Any, rate: float) -> Any:
    """Returns a layer's output with dropout on its hidden states."""
    if isinstance(output, Tensor):
        return F.dropout(output, rate, training=True)
    return (F.dropout(output[0], rate, training=True), *output[1:])


def read_by_head(values: Tensor, mask: Tensor) -> Tensor:
    """Returns what a head looks at, [b, d]: decoders give it every token, and the last one counts."""
    if values.dim() == 2:
        return values
    places = torch.arange(mask.shape[1], device=mask.device)
    return values[torch.arange(len(values), device=values.device), (mask * places).argmax(-1)]
