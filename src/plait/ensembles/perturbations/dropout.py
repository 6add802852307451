"""Dropout as a perturbation: train mode does it, once every member has a row of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from plait.ensembles.perturbation import PERTURBATIONS, Place, check
from plait.ensembles.shapes import Hidden
from plait.errors import RecipeError
from plait.registry import Above


@PERTURBATIONS.register(
    "dropout",
    place=Place.DROPOUT,
    paper="arXiv:1207.0580",
    limits={"rate": Above(0.0, 1.0)},
    when="Start here: costs nothing.",
)
def dropout(hidden: Hidden, *, rate: float | None = None) -> Hidden:
    """Returns the hidden states as they are: the layers above draw a mask for every row, so for every member.

    That holds for a replicated batch, not under `vmap(randomness="same")`, which gives all members one mask.

    Args:
        hidden: the states.
        rate: the probability with which layers drop (`dropping` sets it); by default what the model has.
    """
    check("dropout", rate=rate)
    return hidden


@contextmanager
def dropping(module: nn.Module, rate: float | None = None) -> Iterator[None]:
    """Lets every dropout of a module drop with `rate` inside, attention's too; afterwards they are as before.

    Raises:
        RecipeError: When nothing would be dropped, so that the members would not differ.
    """
    check("dropout", rate=rate)
    found = list(dropouts(module))
    if not found or (rate is None and not any(getattr(owner, name) > 0 for owner, name in found)):
        raise RecipeError(
            f"perturbation dropout: {type(module).__name__} drops nothing (its config says 0); "
            "expected a rate above 0: give rate, or choose another perturbation"
        )
    before = [(owner, name, getattr(owner, name)) for owner, name in found]
    try:
        for owner, name, old in before:
            setattr(owner, name, old if rate is None else rate)
        yield
    finally:
        for owner, name, old in before:
            setattr(owner, name, old)


def dropouts(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yields where a module keeps its dropout rates: `p` of dropout layers, and attention's as a plain number."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            yield part, "p"
        for name, value in vars(part).items():
            if name.endswith("dropout") and isinstance(value, int | float) and not isinstance(value, bool):
                yield part, name
