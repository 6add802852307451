"""A second device for processes of their own: torch takes it for an accelerator, and it computes on the CPU.

What it can show without hardware is whether tensors go where the model is: as on a GPU, operations on tensors of two
devices are refused. Registered by torch's hooks for backends written in Python, once and for good: never register it
in the process of the tests.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, library
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
CROSSING = {"_to_copy", "copy_", "_local_scalar_dense", "equal"}
"""Operations that may read another device."""


class _Module(backend_registration._DummyBackendModule):
    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.default_generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        torch.default_generator.set_state(state)


class Elsewhere(Tensor):
    """A tensor that says it is on the device, around one on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=f"{NAME}:0"
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, *args, **(kwargs or {}))


def _call(func: Any, *args: Any, **kwargs: Any) -> Any:
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    if here and name not in CROSSING and any(t.dim() and not isinstance(t, Elsewhere) for t in tensors):
        raise RuntimeError(f"{func}: expected all tensors on one device")
    target = kwargs.get("device")
    stays = bool(here) if target is None else torch.device(target).type == NAME
    if target is not None:
        kwargs["device"] = "cpu"
    plain_args, plain_kwargs = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs))
    found = func(*plain_args, **plain_kwargs)
    if name.endswith("_") and isinstance(args[0], Elsewhere):  # in place
        return args[0]
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, Tensor) else x, found) if stays else found


def _without_gradients(mode: Any = True) -> Any:
    """Stands for inference mode, as a context and as a decorator."""
    if callable(mode):
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else nullcontext()


def register() -> None:
    """Makes it the accelerator of this process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    rules = library.Library("_", "IMPL")
    rules.fallback(_call, "PrivateUse1")
    globals()["_rules"] = rules  # what it registers lives as long as it does
    # Tensors of subclasses carry no version in inference mode, and views of them ask for it.
    torch.inference_mode = _without_gradients
