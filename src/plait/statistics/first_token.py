"""Linear layers with frozen weights that skip gradients that are zero because only the first token is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.statistics.shapes import Grads


def reads_first_token(grads: Grads) -> bool:
    """Whether no token but the first has a gradient."""
    # One column decides nearly always; the second look happens only when it is all zero.
    return grads.shape[1] == 1 or not (bool(grads[:, 1].any()) or bool(grads[:, 1:].any()))


class _FirstTokenLinear(torch.autograd.Function):
    """y = x Wᵀ + b, differentiated by x only."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(context: Any, grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = context.saved_tensors
        if grads.dim() != 3 or not reads_first_token(grads):
            return grads @ weight, None, None
        back = grads.new_zeros(*grads.shape[:2], weight.shape[1])
        back[:, 0] = grads[:, 0] @ weight
        return back, None, None


def _forward(module: nn.Linear) -> Any:
    def forward(x: Tensor) -> Tensor:
        if module.weight.requires_grad or not x.requires_grad:
            return F.linear(x, module.weight, module.bias)
        found: Tensor = _FirstTokenLinear.apply(x, module.weight, module.bias)
        return found

    return forward


@contextmanager
def skip_zero_gradients(model: nn.Module) -> Iterator[None]:
    """Makes the linear layers of a model lean wherever their weights are frozen; undone at the end."""
    changed = [
        module for module in model.modules() if type(module) is nn.Linear and "forward" not in vars(module)
    ]
    for module in changed:
        module.forward = _forward(module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward
