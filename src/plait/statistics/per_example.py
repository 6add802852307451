"""Per-example gradients in the cheapest form that determines them, from hooks where layers are understood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from plait.statistics.backward import (
    Objective,
    Passes,
    Probe,
    backward_passes,
    parameter_gradients,
    requiring_gradients,
)
from plait.statistics.batch import Batch
from plait.statistics.first_token import reads_first_token
from plait.statistics.shapes import Examples, Grads, Ids, Inputs, Matrix


@dataclass(frozen=True)
class Outer:
    """∂W_b = grads_bᵀ inputs_b."""

    inputs: Inputs
    grads: Grads


@dataclass(frozen=True)
class Vector:
    """∂w_b = grads_b."""

    grads: Examples


@dataclass(frozen=True)
class Lookup:
    """∂W_b[v] = Σ of grads_b[t] over the tokens t with id v; the row `unused` gets nothing (padding_idx)."""

    ids: Ids
    grads: Grads
    unused: int | None = None


@dataclass(frozen=True)
class Tied:
    """A table that tokens are looked up in and that gives the logits: ∂W_b sums both, before it is squared."""

    outer: Outer
    lookup: Lookup

    @property
    def grads(self) -> Grads:
        """Returns the gradients at the logits."""
        return self.outer.grads


Factor = Outer | Vector | Lookup | Tied
Factors = Iterator[tuple[str, Factor]]
Understand = Callable[[nn.Module, Tensor, Tensor], Factors]


class NotUnderstoodError(Exception):
    """A layer was used in a way for which no piece is known; the gradients are then taken one example at a time."""


def join(pieces: Sequence[Factor]) -> Factor:
    """Returns the piece whose gradient is the sum of the given ones: tokens are laid end to end, vectors added."""
    if len(pieces) == 1:
        return pieces[0]
    vectors = [piece for piece in pieces if isinstance(piece, Vector)]
    outers = [piece for piece in pieces if isinstance(piece, Outer)]
    lookups = [piece for piece in pieces if isinstance(piece, Lookup)]
    if len(vectors) == len(pieces):
        return Vector(torch.stack([piece.grads for piece in vectors]).sum(0))
    if len(outers) + len(lookups) != len(pieces):
        raise NotUnderstoodError("one parameter is used by layers of different kinds")
    if not lookups:
        return _outers(outers)
    ids, grads = (torch.cat(parts, dim=1) for parts in zip(*((p.ids, p.grads) for p in lookups), strict=True))
    lookup = Lookup(ids, grads, lookups[0].unused)
    return Tied(_outers(outers), lookup) if outers else lookup


def _outers(pieces: Sequence[Outer]) -> Outer:
    inputs, grads = ([getattr(piece, name) for piece in pieces] for name in ("inputs", "grads"))
    return Outer(torch.cat(inputs, dim=1), torch.cat(grads, dim=1))


def _tokens(x: Tensor) -> Inputs:
    return x.unsqueeze(1) if x.dim() == 2 else x


def _over_tokens(g: Tensor) -> Examples:
    return g.flatten(1, -2).sum(1) if g.dim() > 2 else g


def _linear(module: nn.Module, x: Tensor, g: Tensor) -> Factors:
    yield "weight", Outer(_tokens(x), _tokens(g))
    if module.bias is not None:
        yield "bias", Vector(_over_tokens(g))


def _scaled(module: nn.Module, normal: Tensor, g: Tensor) -> Factors:
    yield "weight", Vector(_over_tokens(g * normal))
    if getattr(module, "bias", None) is not None:
        yield "bias", Vector(_over_tokens(g))


def _layer_norm(module: nn.Module, x: Tensor, g: Tensor) -> Factors:
    assert isinstance(module, nn.LayerNorm)
    if module.weight is not None:
        yield from _scaled(module, F.layer_norm(x, module.normalized_shape, eps=module.eps), g)


def _rms_norm(module: nn.Module, x: Tensor, g: Tensor) -> Factors:
    assert isinstance(module, nn.RMSNorm)
    if module.weight is not None:
        yield from _scaled(module, F.rms_norm(x, tuple(module.normalized_shape), eps=module.eps), g)


def _root_mean_square_norm(module: nn.Module, x: Tensor, g: Tensor) -> Factors:
    """Yields what a norm of a language model has: its own class in each family, scaled by w or by 1 + w."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if eps is None:
        raise NotUnderstoodError(f"{type(module).__name__} without an epsilon")
    wide = x.float()  # as all of them compute it
    normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    yield from _scaled(module, normal.to(g.dtype), g)


def _conv1d(_: nn.Module, x: Tensor, g: Tensor) -> Factors:
    """Yields what GPT-2's linear layer has, which stores its weight as [in, out]."""
    yield "weight", Outer(_tokens(g), _tokens(x))
    yield "bias", Vector(_over_tokens(g))


def _embedding(module: nn.Module, ids: Tensor, g: Tensor) -> Factors:
    assert isinstance(module, nn.Embedding)
    if module.scale_grad_by_freq or module.max_norm is not None:
        raise NotUnderstoodError("an embedding that rescales its gradients or rows")
    yield "weight", Lookup(ids.flatten(1), g.flatten(1, -2), module.padding_idx)


def _scaled_embedding(module: nn.Module, ids: Tensor, g: Tensor) -> Factors:
    """Yields what Gemma's table has, whose rows are multiplied by one number."""
    scale: Any = module.embed_scale
    yield from _embedding(module, ids, g * torch.as_tensor(scale).to(g))


def _convolution(module: nn.Module, x: Tensor, g: Tensor) -> Factors:
    assert isinstance(module, nn.Conv1d)
    if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise NotUnderstoodError("a grouped or specially padded convolution")
    (size,), (padding,), (stride,), (dilation,) = (
        module.kernel_size, module.padding, module.stride, module.dilation,
    )  # fmt: skip
    columns = F.unfold(
        x.unsqueeze(2), (1, size), dilation=(1, dilation), padding=(0, padding), stride=(1, stride)
    )
    yield "weight", Outer(columns.transpose(1, 2), g.transpose(1, 2))
    if module.bias is not None:
        yield "bias", Vector(g.sum(2))


LAYERS: dict[type[nn.Module], Understand] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.Embedding: _embedding,
    nn.Conv1d: _convolution,
    Conv1D: _conv1d,
}
"""Layers whose per-example gradients are known, by exact class: a subclass may compute something else."""
NAMED: dict[str, Understand] = {
    "RMSNorm": _root_mean_square_norm,
    "T5LayerNorm": _root_mean_square_norm,
    "ScaledWordEmbedding": _scaled_embedding,
}
"""Layers that each family of transformers has a class of its own for, by the end of its name."""


def understood(module: nn.Module) -> Understand | None:
    """Returns how the gradients of a layer follow from what enters it and leaves it, None where that is not known.

    What a name promises is not taken on trust: the first example decides.
    """
    kind = type(module)
    if kind in LAYERS or not kind.__module__.startswith("transformers.models."):
        return LAYERS.get(kind)
    return next((found for name, found in NAMED.items() if kind.__name__.endswith(name)), None)


Sink = Callable[[str, Factor], None]
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
        self._waiting: dict[str, list[Factor]] = {}
        known = {module: how for module in model.modules() if (how := understood(module)) is not None}
        self._known, layers = known, list(known)
        lookups = [module for module in layers if isinstance(module, nn.Embedding)]
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
        # A norm of each head sees [b, t, head, d].
        most = 4 if self._known[module] is _root_mean_square_norm else 3
        if inputs.shape[0] != self._count or not 2 <= inputs.dim() <= most:
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
        for attribute, piece in self._known[module](module, inputs, gradient):
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

    def __call__(self, name: str, piece: Factor) -> None:
        gradient = self._gradients.pop(name, None)
        if gradient is None:
            self._right = False
            return
        if isinstance(piece, Lookup) and gradient.is_sparse:
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
    # A table that also gives the logits has a dense gradient from there, to which a sparse one cannot be added.
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    changed = [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        and not module.sparse
        and not module.scale_grad_by_freq
        and id(module.weight) not in tied
    ]
    for module in changed:
        module.sparse = True
    try:
        yield
    finally:
        for module in changed:
            module.sparse = False


class Squares:
    """Adds squared pieces to totals, with one scratch matrix per shape that stays in cache from example to example."""

    def __init__(self) -> None:
        """Starts without scratch."""
        self._scratch: dict[torch.Size, Tensor] = {}

    def add(self, total: Tensor, piece: Factor) -> None:
        """Adds Σ_b g_b² to `total`, in place."""
        if isinstance(piece, Vector):
            total += piece.grads.to(total.dtype).square().sum(0)
        elif isinstance(piece, Lookup):
            ids, sums = rows_used(piece, total.shape[0])
            total.index_add_(0, ids, sums.to(total.dtype).square_())
        elif isinstance(piece, Tied):
            self._add_tied(total, piece)
        else:
            self._add_outer(total.view(piece.grads.shape[2], -1), piece)

    def _add_tied(self, total: Matrix, piece: Tied) -> None:
        scratch, lookup = self._place(total), piece.lookup
        looked = lookup.grads.to(total.dtype)
        if lookup.unused is not None:
            looked = looked * (lookup.ids != lookup.unused).unsqueeze(-1)
        outer = zip(piece.outer.inputs.to(total.dtype), piece.outer.grads.to(total.dtype), strict=True)
        for (x, g), ids, row in zip(outer, lookup.ids, looked, strict=True):
            torch.mm(g.T, x, out=scratch)
            scratch.index_add_(0, ids, row)
            total.addcmul_(scratch, scratch)

    def _place(self, total: Matrix) -> Matrix:
        scratch = self._scratch.get(total.shape)
        if scratch is None:
            scratch = self._scratch[total.shape] = torch.empty_like(total)
        return scratch

    def _add_outer(self, total: Matrix, piece: Outer) -> None:
        # No copy unless the model is in half precision, whose squares would underflow.
        inputs, grads = piece.inputs.to(total.dtype), piece.grads.to(total.dtype)
        if reads_first_token(grads):
            # (g xᵀ)² = g² (x²)ᵀ: one product for the whole batch.
            total.addmm_(grads[:, 0].square().T, inputs[:, 0].square())
            return
        scratch = self._place(total)
        for x, g in zip(inputs, grads, strict=True):
            torch.mm(g.T, x, out=scratch)
            total.addcmul_(scratch, scratch)


def rows_used(piece: Lookup, rows: int) -> tuple[Tensor, Matrix]:
    """Returns the gradient's rows that are not zero, one for each (example, id): the ids, and the sums over tokens."""
    examples = torch.arange(piece.ids.shape[0], device=piece.ids.device).unsqueeze(1)
    keys, places = torch.unique(piece.ids + rows * examples, return_inverse=True)
    sums = piece.grads.new_zeros(len(keys), piece.grads.shape[2])
    sums.index_add_(0, places.flatten(), piece.grads.flatten(0, 1))
    ids = keys % rows
    if piece.unused is not None:
        sums[ids == piece.unused] = 0.0
    return ids, sums


def sum_of_squares(piece: Factor, like: Tensor) -> Tensor:
    """Returns Σ_b g_b² in the shape of `like`."""
    total = torch.zeros_like(like)
    Squares().add(total, piece)
    return total
