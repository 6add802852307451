"""What a perturbation is: a pure function that makes the members' hidden states differ, in training alone.

Each says where it acts, takes what it asks for by name from `INPUTS`, and draws member by member: a batch of all
members gets what M separate passes would have drawn, and one member can be drawn again from its own generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor

from plait.data import ProblemType
from plait.ensembles.divergences import SINGLE, at_least_float32
from plait.ensembles.shapes import Hidden, Mask
from plait.registry import Registry

Perturbation = Callable[..., Tensor]
PERTURBATIONS: Registry[Perturbation] = Registry(
    "perturbation",
    "plait.ensembles.perturbations",
    plugins="plait.perturbations",
    hint="perturbation none does nothing",
    place="hidden",
)
Generators = Sequence[Generator] | None

INPUTS = ("hidden", "members", "mask", "generators", "prediction", "droppable", "blank")
"""All that a perturbation may ask for.

hidden: what it perturbs, after replication. members: M. mask: real tokens, [B, T] or [M·B, T]. generators: one per
member, or None for the default one, member after member. prediction: what becomes of the states, a `Prediction`.
droppable: words that may be dropped, as `mask`. blank: what the embeddings give for the unknown word at each place,
[B, T, H] or [H]; None for zeros.
"""


@dataclass(frozen=True)
class Prediction:
    """How hidden states become logits, and what those mean.

    Attributes:
        forward: From states in the layout of `hidden` to logits, members first; no example or member may see another.
        problem: What the logits mean.
        counted: The rows of logits that count, [B] or [B, T]; all by default.
        clean: The logits of the unperturbed states under the same dropout, where they are known.
    """

    forward: Callable[[Tensor], Tensor]
    problem: ProblemType = SINGLE
    counted: Mask | None = None
    clean: Tensor | None = None


class Place(StrEnum):
    """Where a perturbation acts."""

    NONE = "none"
    DROPOUT = "dropout"
    EMBEDDINGS = "embeddings"
    HIDDEN = "hidden"


def place(name: str, options: Mapping[str, Any]) -> Place:
    """Returns where a perturbation acts: its option `at` where it has one, else what it was registered with."""
    entry = PERTURBATIONS[name]
    if "at" not in entry.options:
        return Place(entry.facts["place"])
    return Place(options.get("at", entry.options["at"].default))


def check(name: str, **options: Any) -> None:
    """Raises `RecipeError` with all options of a perturbation that are unknown to it or out of their limits."""
    PERTURBATIONS[name].check_values(options)


def perturb(name: str, options: Mapping[str, Any], **inputs: Any) -> Tensor:
    """Returns the hidden states perturbed by name: of `inputs` each perturbation takes what it asks for."""
    entry = PERTURBATIONS[name]
    entry.check(options)
    return entry.function(**{key: inputs[key] for key in entry.inputs if key in inputs}, **options)


def perturber(
    name: str, options: Mapping[str, Any], generators: Generators = None, **inputs: Any
) -> Callable[[Hidden, Callable[[Tensor], Tensor]], Hidden]:
    """Returns a perturbation as the forward pass of an ensemble takes it, for one pass: (hidden, forward) to hidden.

    It may be called once with all members or member after member, [M, B, T, H] or [1, B, T, H]; each gets the next of
    the generators, so both ways draw the same.

    Args:
        name: in `PERTURBATIONS`.
        options: of the perturbation.
        generators: one per member; see `member_generators`.
        inputs: `mask`, `droppable` and `blank` of `INPUTS`, `problem` and `counted` of a `Prediction`.
    """
    check(name, **options)
    waiting = iter(generators or ())
    meaning = {key: inputs.pop(key) for key in ("problem", "counted") if key in inputs}

    def apply(hidden: Hidden, forward: Callable[[Tensor], Tensor]) -> Hidden:
        members = hidden.shape[0]
        own = list(islice(waiting, members)) if generators else None
        given = {"hidden": hidden, "members": members, "generators": own}
        return perturb(name, options, **given, prediction=Prediction(forward, **meaning), **inputs)

    return apply


def member_generators(members: int, device: torch.device | str = "cpu") -> list[Generator]:
    """Returns a generator per member, seeded from the default one: a run resumed with its state draws the same."""
    seeds = torch.randint(2**62, (members,)).tolist()
    return [Generator(device=device).manual_seed(seed) for seed in seeds]


def by_member(hidden: Hidden, members: int) -> Tensor:
    """Returns [M, B, T, H] of either layout, in at least float32."""
    values = at_least_float32(hidden)
    return values if hidden.dim() == 4 else values.unflatten(0, (members, -1))


def mask_by_member(mask: Mask | None, like: Tensor) -> Tensor:
    """Returns a mask [B, T] or [M·B, T] as [M or 1, B, T, 1] in the dtype of the states; ones for none."""
    if mask is None:
        return like.new_ones(1, 1, 1, 1)
    shaped = mask.unsqueeze(0) if mask.shape[0] == like.shape[1] else mask.unflatten(0, like.shape[:2])
    return shaped.unsqueeze(-1).to(like)


def drawn(
    make: Callable[..., Tensor], shape: Sequence[int], like: Tensor, generators: Generators = None
) -> Tensor:
    """Returns `shape[0]` draws, one member after the other, each from its own generator where there are some."""
    sources: Sequence[Generator | None] = generators or [None] * shape[0]
    if len(sources) != shape[0]:
        raise ValueError(f"{len(sources)} generators for {shape[0]} members")
    options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    return torch.stack([make(tuple(shape[1:]), generator=source, **options) for source in sources])
