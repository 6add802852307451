"""Per-example gradients of every parameter: from hooks where layers are understood, else one example at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plait.statistics.batch import Batch
from plait.statistics.pieces import LAYERS, Lookup, NotUnderstoodError, Piece, Vector, join
from plait.statistics.squares import sum_of_squares
from plait.statistics.sweep import (
    Objective,
    Passes,
    Probe,
    backward_passes,
    parameter_gradients,
    requiring_gradients,
)

Sink = Callable[[str, Piece], None]
PROBE_TOKENS = 8


class LayerHooks:
    """Turns what passes through the layers of a model into pieces, and hands them to a sink as gradients arrive.

    A parameter used once is handed over inside the backward pass, while its factors are in cache; one used more often
    (shared layers, tied weights) after it, joined, because a sum must not be squared term by term.
    """

    def __init__(self, model: PreTrainedModel, names: Mapping[int, str], sink: Sink) -> None:
        """Hooks every understood layer; `names` maps id(parameter) to its name."""
        self.leaves: list[Tensor] = []
        self.delivered = False
        self._sink = sink
        self._names = names
        self._count = 0
        self._uses: Counter[str] = Counter()
        self._waiting: dict[str, list[Piece]] = {}
        layers = [module for module in model.modules() if type(module) in LAYERS]
        lookups = [module for module in layers if type(module) is nn.Embedding]
        self._handles = [layer.register_forward_hook(self._forward) for layer in layers]
        self._handles += [layer.register_forward_pre_hook(self._expand) for layer in lookups]

    def run(self, model: PreTrainedModel, batch: Batch, passes: Passes) -> None:
        """Hands over the gradients of a batch."""
        self.leaves.clear()
        self._uses.clear()
        self._waiting.clear()
        self._count, self.delivered = batch.count, False
        for _ in backward_passes(model, batch, passes, self.leaves):
            for name, pieces in self._waiting.items():
                self._sink(name, join(pieces))
            self._waiting.clear()
        self.leaves.clear()

    def close(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _expand(self, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        # Position ids come as one row for the whole batch. Looked up like that, the gradients of the examples are
        # added before anybody can square them.
        ids = arguments[0]
        if ids.dim() == 2 and ids.shape[0] == 1 and self._count > 1:
            return (ids.expand(self._count, -1), *arguments[1:])
        return None

    def _forward(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
        inputs = arguments[0].detach()
        if inputs.shape[0] != self._count or inputs.dim() not in (2, 3):
            raise NotUnderstoodError(f"{type(module).__name__} on shape {tuple(inputs.shape)}")
        starts = not output.requires_grad
        if starts:
            # Nothing below needs a gradient: the graph starts here.
            output = output.detach().requires_grad_()
            self.leaves.append(output)
        for parameter in module.parameters(recurse=False):
            self._uses[self._names[id(parameter)]] += 1
        output.register_hook(lambda gradient: self._backward(module, inputs, gradient))
        return output if starts else None

    @torch.no_grad()
    def _backward(self, module: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
        for attribute, piece in LAYERS[type(module)](module, inputs, gradient):
            name = self._names[id(getattr(module, attribute))]
            self.delivered = True
            if self._uses[name] == 1:
                self._sink(name, piece)
            else:
                self._waiting.setdefault(name, []).append(piece)


class ExampleGradients:
    """Feeds the per-example gradients of a model's parameters to a sink, as pieces.

    The first example decides how: copies of it go through the hooks, and their sum of squares must be that many times
    the square of plain autograd's gradient, for every parameter. Where it is not (relative position tables that serve
    the whole batch at once: MPNet, DeBERTa; layers nobody has heard of) plain autograd takes one example at a time:
    exact for any model, and slower.
    """

    def __init__(self, model: PreTrainedModel, objective: Objective, sink: Sink) -> None:
        """Watches `model`; pieces go to `sink` by parameter name."""
        self.parameters = dict(model.named_parameters())
        self._model, self._objective, self._sink = model, objective, sink
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        self._hooks: LayerHooks | None = None
        self._decided = objective.per == "batch"

    def see(self, batch: Batch) -> None:
        """Hands over the gradients of a batch."""
        if not self._decided:
            self._decided = True
            if self._hooks_are_right(batch):
                self._hooks = LayerHooks(self._model, self._names, self._sink)
        if self._hooks is not None and self._through_hooks(self._hooks, batch):
            return
        for part in [batch] if self._objective.per == "batch" else batch.examples():
            self._plainly(part)

    def close(self) -> None:
        """Takes the hooks off the model."""
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None

    def _through_hooks(self, hooks: LayerHooks, batch: Batch) -> bool:
        """Whether the batch went through; if it did not, nothing was handed over, and no other will be tried."""
        try:
            hooks.run(self._model, batch, self._objective)
        except NotUnderstoodError:
            if hooks.delivered:
                raise
            self.close()
            return False
        return True

    def _plainly(self, batch: Batch) -> None:
        with requiring_gradients(self.parameters):
            for gradients in parameter_gradients(self._model, batch, self._objective, self.parameters):
                for name, gradient in gradients.items():
                    self._sink(name, Vector(gradient.unsqueeze(0)))

    def _hooks_are_right(self, batch: Batch) -> bool:
        """Whether hooks agree with plain autograd on copies of the first example."""
        width = min(batch.lengths()[0], PROBE_TOKENS)
        times = 3 if width == 2 else 2  # another number than of tokens, so that no axis is taken for another
        alone, together = batch.copies(1, width), batch.copies(times, width)
        with requiring_gradients(self.parameters), _sparse_lookups(self._model):
            (expected,) = parameter_gradients(self._model, alone, Probe(), self.parameters)
        check = _Comparison(expected, times)
        hooks = LayerHooks(self._model, self._names, check)
        try:
            hooks.run(self._model, together, Probe())
        except (NotUnderstoodError, RuntimeError):  # an expanded look-up may not fit where the model puts it
            return False
        finally:
            hooks.close()
        return check.passed()


class _Comparison:
    """A sink that compares each parameter's sum of squares with `times` the square of one gradient."""

    def __init__(self, gradients: dict[str, Tensor], times: int) -> None:
        self._gradients = gradients
        self._times = times
        rounding = max((torch.finfo(value.dtype).eps for value in gradients.values()), default=0.0)
        self._tolerance = max(1e-3, 16 * rounding)
        # Key biases have no gradient but rounding, which no two programs share.
        self._noise = 8 * rounding * max((_norm(value) for value in gradients.values()), default=0.0)
        self._right = True

    def __call__(self, name: str, piece: Piece) -> None:
        gradient = self._gradients.pop(name, None)
        if gradient is None:
            self._right = False
            return
        if isinstance(piece, Lookup):
            piece, gradient = self._used_rows(piece, gradient)
        gradient = gradient.to_dense()
        wanted = gradient.square().mul_(self._times)
        found = sum_of_squares(piece, wanted)
        self._right &= float(torch.dist(found, wanted)) <= self._tolerance * _norm(wanted) + self._noise**2

    def _used_rows(self, piece: Lookup, gradient: Tensor) -> tuple[Lookup, Tensor]:
        """Returns the same with a table of the used rows only: the whole one is large, and the rest must be zero."""
        rows, ids = torch.unique(piece.ids, return_inverse=True)
        used = gradient.index_select(0, rows)
        self._right &= _norm(gradient) <= (1 + self._tolerance) * _norm(used)
        unused = (rows == piece.unused).nonzero().flatten().tolist() if piece.unused is not None else []
        return Lookup(ids, piece.grads, unused[0] if unused else None), used

    def passed(self) -> bool:
        """Whether every parameter agreed, and none was left out that has a gradient."""
        return self._right and all(_norm(value) <= self._noise for value in self._gradients.values())


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.coalesce().values() if value.is_sparse else value))


@contextmanager
def _sparse_lookups(model: nn.Module) -> Iterator[None]:
    """Makes embeddings give sparse gradients: the dense one of a large vocabulary costs more than all the rest."""
    changed = [
        module
        for module in model.modules()
        if type(module) is nn.Embedding and not module.sparse and not module.scale_grad_by_freq
    ]
    for module in changed:
        module.sparse = True
    try:
        yield
    finally:
        for module in changed:
            module.sparse = False
