"""An encoder's layers in the order of their application, and part of its forward pass: the lower or the upper ones."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from plait.encoders.topology import TABLES
from plait.errors import RecipeError

Forward = Callable[..., Any]
Inputs = dict[str, Tensor]


class PartialForward:
    """One pass from layer `start`, where `hidden` enters if given, to layer `stop`, where it leaves as `reached`.

    Depth 0 is what the embeddings give, depth L what leaves the last layer.
    """

    def __init__(self, layers: Layers, start: int = 0, stop: int | None = None, hidden: Tensor | None = None):
        """Plans the pass."""
        self.layers, self.start, self.hidden = layers, start, hidden
        self.stop = layers.depth if stop is None else stop
        self.reached: Tensor | None = None
        self.index = 0

    def layer(self, own: Forward) -> Forward:
        """Returns the forward of a layer that asks, at each call, whether its turn has come."""

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            index, self.index = self.index, self.index + 1
            if index == self.start and self.hidden is not None and not self._enters_embeddings():
                hidden = self.hidden
            if index == self.stop and self.reached is None:
                self.reached = hidden
            if not self.start <= index < self.stop:
                return self._past(own, hidden, index, args, kwargs)
            out = own(hidden, *args, **kwargs)
            self.layers.in_tuples = isinstance(out, tuple)
            if index + 1 == self.layers.depth:
                self.reached = out[0] if isinstance(out, tuple) else out
            return out

        return forward

    def _past(self, own: Forward, hidden: Tensor, index: int, args: Any, kwargs: Any) -> Any:
        if self.layers.in_tuples is None:
            self.layers.in_tuples = _gives_tuples(own, hidden, args, kwargs)
        if index + 1 == self.start == self.layers.depth and self.hidden is not None:
            hidden = self.hidden
        return (hidden, None) if self.layers.in_tuples else hidden

    def _enters_embeddings(self) -> bool:
        return self.start == 0 and self.layers.embeddings is not None

    def embeddings(self, own: Forward) -> Forward:
        """Returns the forward of the embeddings: empty ones where hidden states enter above them."""

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if self.hidden is not None and self.start == 0:
                return self.hidden
            if self.hidden is None or self.layers.embedded is None:
                out: Tensor = own(*args, **kwargs)
                self.layers.embedded = out.shape[-1], out.dtype
                if self.stop == 0:
                    self.reached = out
                return out
            width, dtype = self.layers.embedded
            # Masks and positions are made from its shape alone.
            empty = torch.zeros((), dtype=dtype, device=self.hidden.device)
            return empty.expand(*self.hidden.shape[:2], width)

        return forward

    def convolution(self, own: Forward) -> Forward:
        """Returns the forward of DeBERTa's convolution, which belongs to the end of the first layer."""

        def forward(embedded: Tensor, hidden: Tensor, *args: Any) -> Tensor:
            if self.start > 0 or self.stop == 0:
                return hidden
            out: Tensor = own(embedded, hidden, *args)
            if self.layers.depth == 1:
                self.reached = out
            return out

        return forward


def _gives_tuples(own: Forward, hidden: Tensor, args: Any, kwargs: Any) -> bool:
    """Says whether a layer of this family returns a tuple, by calling one; no random number is used up."""
    devices = [hidden.device] if hidden.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        return isinstance(own(hidden, *args, **kwargs), tuple)


@contextmanager
def routed(passage: PartialForward) -> Iterator[PartialForward]:
    """Makes the encoder take this passage inside; afterwards it runs as a whole again."""
    modules: list[tuple[nn.Module, Callable[[Forward], Forward]]] = [
        (layer, passage.layer) for layer in passage.layers.distinct()
    ]
    if passage.layers.embeddings is not None:
        modules.append((passage.layers.embeddings, passage.embeddings))
    if passage.layers.convolution is not None:
        modules.append((passage.layers.convolution, passage.convolution))
    before = [(module, vars(module).get("forward")) for module, _ in modules]
    for module, wrap in modules:
        module.forward = wrap(module.forward)
    try:
        yield passage
    finally:
        for module, forward in before:
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def filled(given: Mapping[str, Tensor | None]) -> Inputs:
    """Returns the inputs that are there, each with a row per example: some, such as positions, may have one for all."""
    found = {name: tensor for name, tensor in given.items() if tensor is not None}
    rows = max((len(tensor) for tensor in found.values() if tensor.dim() > 1), default=0)
    single = {name for name, tensor in found.items() if tensor.dim() > 1 and len(tensor) == 1}
    return {
        n: tensor.expand(rows, *tensor.shape[1:]) if n in single else tensor for n, tensor in found.items()
    }


def repeated(inputs: Inputs, members: int) -> Inputs:
    """Returns the inputs once for every member, one member after another."""
    return {name: tensor.repeat(members, *[1] * (tensor.dim() - 1)) for name, tensor in inputs.items()}


def again(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Returns what a function gives, without its activations; random numbers are drawn again as they were."""

    def cleared(*given: Any) -> Tensor:
        trim(0)
        return function(*given)

    result: Tensor = checkpoint(cleared, *inputs, use_reentrant=False)
    return result


def _trimmer() -> Callable[[int], object]:
    """Returns glibc's `malloc_trim`, or what does nothing elsewhere.

    Between two members all activations are freed, but glibc's heap keeps them, and with gaps that the next member's
    do not fit into: without this, replay on a CPU took nearly twice the memory of one model.
    """
    try:
        found: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # no C library (Windows), or another one (macOS, musl)
        return lambda _: 0
    return found


trim = _trimmer()

GROUPS = "albert_layer_groups"
"""ALBERT's list of layers: a group is applied several times, and an application counts as a layer."""


class GroupApplications(nn.ModuleList):
    """ALBERT's groups, indexed by application: each module is kept once and used by several."""

    def __init__(self, modules: Mapping[str, nn.Module], order: Sequence[str]) -> None:
        """Keeps `modules` under their names; application i uses the one named `order[i]`."""
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.order = tuple(order)

    def __getitem__(self, index: Any) -> Any:
        """Returns the module of an application."""
        return self._modules[self.order[index]]


@dataclass(eq=False)
class Layers:
    """An encoder's layers in the order in which they are applied, and what is known of their calls."""

    applied: tuple[nn.Module, ...]
    embeddings: nn.Module | None = None
    convolution: nn.Module | None = None
    in_tuples: bool | None = None
    embedded: tuple[int, torch.dtype] | None = None

    @property
    def depth(self) -> int:
        """Returns how many layers one pass applies."""
        return len(self.applied)

    def distinct(self) -> Iterable[nn.Module]:
        """Returns every module once."""
        return dict.fromkeys(self.applied)


def path_of_layers(base: PreTrainedModel) -> str:
    """Returns where an encoder keeps its list of layers.

    Raises:
        RecipeError: When there is no list, or several, of as many modules as the configuration has layers.
    """
    family = TABLES.get(base.config.model_type)
    if family is not None:
        return family.layer.partition(".{}")[0]
    found: list[str] = [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == base.config.num_hidden_layers
    ]
    if len(found) != 1:
        raise RecipeError(
            f"the layers of {type(base).__name__} are not found (lists of {base.config.num_hidden_layers} modules: "
            f"{', '.join(found) or 'none'}); ensembles know {', '.join(sorted(TABLES))}"
        )
    return found[0]


def layers_of(base: PreTrainedModel) -> Layers:
    """Returns an encoder's layers in the order of their application."""
    modules = base.get_submodule(path_of_layers(base))
    assert isinstance(modules, nn.ModuleList)
    depth = base.config.num_hidden_layers
    if isinstance(modules, GroupApplications) or not grouped(base):
        applied = tuple(modules[i] for i in range(depth))
    else:
        applied = tuple(modules[group(base.config, i)] for i in range(depth))
    parent = base.get_submodule(path_of_layers(base).rpartition(".")[0])
    return Layers(applied, getattr(base, "embeddings", None), getattr(parent, "conv", None))


def grouped(base: PreTrainedModel) -> bool:
    """Says whether the layers are ALBERT's groups, each applied several times."""
    return path_of_layers(base).endswith(GROUPS)


def group(config: PreTrainedConfig, application: int) -> int:
    """Returns which of ALBERT's groups an application uses."""
    return application * int(config.num_hidden_groups) // int(config.num_hidden_layers)
