"""Where the engine takes parameters from: the body or the head of a checkpoint, or tensors in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Place(Protocol):
    """What is known of a parameter from file headers alone."""

    @property
    def dtype(self) -> torch.dtype:
        """Returns the stored dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape."""

    @property
    def file(self) -> Path:
        """Returns the file it lies in."""

    @property
    def start(self) -> int:
        """Returns the offset of its first byte in the file; -1 where its bytes do not lie there as they are."""


class TensorSource(Protocol):
    """Named parameters that are read late, one at a time."""

    @property
    def name(self) -> str:
        """Returns the name used in messages, and as part of what random numbers depend on."""

    def header(self, parameter: str) -> Place:
        """Returns what the file header says of a parameter; KeyError when there is none."""

    def read(self, parameter: str) -> Tensor:
        """Returns the parameter."""

    def note(self, parameter: str, digest: str) -> None:
        """Takes the xxh3-128 hex digest of the parameter's stored bytes, which somebody computed while reading."""

    def __contains__(self, parameter: object) -> bool:
        """Returns whether there is such a parameter."""


@dataclass(frozen=True)
class Spot:
    """The place of a tensor that has to be read whole."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path = Path()
    start: int = -1


@dataclass(frozen=True)
class Held:
    """Tensors in memory as a source."""

    name: str
    tensors: Mapping[str, Tensor]

    def __contains__(self, parameter: object) -> bool:
        return parameter in self.tensors

    def header(self, parameter: str) -> Spot:
        """Returns dtype and shape."""
        tensor = self.tensors[parameter]
        return Spot(tensor.dtype, tuple(tensor.shape))

    def read(self, parameter: str) -> Tensor:
        """Returns the tensor itself."""
        return self.tensors[parameter]

    def note(self, parameter: str, digest: str) -> None:
        """Ignores the digest."""


@dataclass(frozen=True)
class Part:
    """Some of a checkpoint's parameters under names of one's own: those of its body, or of its head.

    `rows` puts the labels of a head in another order: it applies to the parameters with a row per label, which are
    read whole.
    """

    checkpoint: Any
    stored: Mapping[str, str]
    rows: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Returns the checkpoint's name."""
        return str(self.checkpoint.name)

    def __contains__(self, parameter: object) -> bool:
        return parameter in self.stored

    def header(self, parameter: str) -> Place:
        """Returns what the checkpoint's headers say of the parameter."""
        found = self.checkpoint.header(self.stored[parameter])
        if self._labelled(parameter):
            return Spot(found.dtype, tuple(found.shape))
        place: Place = found
        return place

    def read(self, parameter: str) -> Tensor:
        """Returns the parameter, its rows in the order asked for."""
        tensor: Tensor = self.checkpoint.read(self.stored[parameter])
        return tensor[list(self.rows)] if self.rows is not None and self._labelled(parameter) else tensor

    def note(self, parameter: str, digest: str) -> None:
        """Hands the digest to the checkpoint."""
        self.checkpoint.note_hash(self.stored[parameter], digest)

    def _labelled(self, parameter: str) -> bool:
        return self.rows is not None and parameter in self.checkpoint.label_parameters


def body(checkpoint: Any) -> Part:
    """Returns the parameters of a checkpoint's body, by body-relative names."""
    return Part(checkpoint, checkpoint.body)


def head(
    checkpoint: Any, rows: tuple[int, ...] | None = None, stored: Mapping[str, str] | None = None
) -> Part:
    """Returns the parameters of a checkpoint's head, labels in the order `rows` where that is given.

    `stored` names more than the head's own parameters: a pooler that stays with it.
    """
    return Part(checkpoint, checkpoint.head if stored is None else stored, rows)
