"""Device, dropout and random state of a model: set for a while, and put back."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import transformers
import xxhash
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from plait.errors import listed

CPU = torch.device("cpu")


def accelerator() -> torch.device:
    """Returns the accelerator that can be used now, or the CPU."""
    # Without the check, torch names what it was built for, be there one or not.
    return torch.accelerator.current_accelerator(check_available=True) or CPU


@contextmanager
def accelerated(model: nn.Module) -> Iterator[torch.device]:
    """Yields where a model runs inside: a model on the CPU goes to the accelerator, and comes back at the end.

    One in double precision stays, for not every accelerator has that.
    """
    first = next(model.parameters())
    device = accelerator()
    if first.device != CPU or device == CPU or first.dtype == torch.float64:
        yield first.device
        return
    model.to(device)
    try:
        yield device
    finally:
        model.to(CPU)


DEAD = (
    "its passes are all the same, for the teacher has no dropout: give --dropout RATE to inject it, or ask for no "
    "passes: --passes 0, and a gate that needs none (plait methods)"
)


def batchnorm_problem(model: nn.Module) -> str | None:
    """Returns what forbids train mode: layers that mix the texts of a batch and change their buffers."""
    found = [path for path, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if not found:
        return None
    return (
        f"{listed(found)} is a BatchNorm, which in train mode mixes the texts of a batch and changes itself; use a "
        "gate that needs no passes (plait methods)"
    )


def acts(modules: Iterable[nn.Module]) -> bool:
    """Says whether any of the modules has a dropout rate above 0."""
    return any(getattr(module, name) > 0 for module in modules for name in _rates(module))


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Puts the mode of every module back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Makes torch's random numbers follow from `seed`, and puts back the caller's, on the CPU and on every device."""
    kind = "cuda" if device.type == "cpu" else device.type
    devices = [] if device.type == "cpu" else list(range(torch.accelerator.device_count()))
    with torch.random.fork_rng(devices, device_type=kind):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.manual_seed(seed)
        yield


def seed_of(*facts: object) -> int:
    """Returns a seed that follows from the facts alone."""
    # 63 bits: torch generators take signed seeds.
    return xxhash.xxh3_64_intdigest("\0".join(map(str, facts)).encode()) >> 1


@contextmanager
def injected(modules: Iterable[nn.Module], rate: float | None) -> Iterator[None]:
    """Sets the rate of each dropout that does not act; the old ones come back at the end."""
    changed: list[tuple[nn.Module, str, float]] = []
    try:
        for module in modules if rate is not None else ():
            for attribute in _rates(module):
                if not (old := getattr(module, attribute)):
                    changed.append((module, attribute, old))
                    setattr(module, attribute, rate)
        yield
    finally:
        for module, attribute, old in changed:
            setattr(module, attribute, old)


def _rates(module: nn.Module) -> list[str]:
    """Returns the attributes that hold a dropout rate: `p` of dropout modules, `attention_dropout` of attention."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return ["p"]
    return [
        name
        for name, value in vars(module).items()
        if name in {"attention_dropout", "dropout", "dropout_p", "dropout_prob"} and isinstance(value, float)
    ]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds every generator inside and gives the caller's states back afterwards."""
    # transformers.set_seed seeds numpy's global generator too, so that one is restored as well.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            transformers.set_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


FULL = ("No space left", "PytorchStreamWriter", "unexpected pos")
"""How torch says that a disk is full."""


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Turns off dropout and gradients inside; every module's mode comes back as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the model itself where several processes train one each."""
    from accelerate.utils import extract_model_from_parallel

    inner: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    return inner
