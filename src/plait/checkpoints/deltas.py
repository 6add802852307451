"""Tensors that an adapter makes of those of its base, piece by piece and in float32; apart because it is arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Literal

import torch
import xxhash
from torch import Tensor

from plait.checkpoints.headers import Header, Seen, read_entries

BLOCK = 2**20
"""Entries that are computed at a time where more are asked for."""
Axis = Literal["rows", "columns"]


def fingerprint(*parts: Tensor | str) -> str:
    """Returns a hex digest of tensors, with their dtypes and shapes, and of texts."""
    total = xxhash.xxh3_128()
    for part in parts:
        if isinstance(part, str):
            total.update(f"{part}\n".encode())
            continue
        total.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
        total.update(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def columns_of(shape: tuple[int, ...]) -> int:
    """Returns the entries of a leading row; those of a vector are rows of one entry."""
    return max(math.prod(shape[1:]), 1)


class LowRank:
    """W + L R: a stored tensor and a product of low rank, both seen as matrices of leading rows."""

    def __init__(self, origin: Header, left: Tensor, right: Tensor, mark: str) -> None:
        """Takes W, L [rows, r] and R [r, columns] in float32, the factors scaled; `mark` tells them apart."""
        self.origin: Header | None = origin
        self._stored, self._left, self._right = origin, left, right
        self.fingerprint = mark

    def fill(self, target: Tensor, start: int, seen: Seen | None = None) -> None:
        """Writes the entries from `start` on; `seen` takes the bytes of W."""
        read_entries(self._stored, target, start, seen)
        width, stop = self._right.shape[1], start + target.numel()
        step = max(1, BLOCK // width)
        for first in range(start // width, -(-stop // width), step):
            last = min(first + step, -(-stop // width))
            product = (self._left[first:last] @ self._right).view(-1)
            begin, end = max(start, first * width), min(stop, last * width)
            target[begin - start : end - start] += product[begin - first * width : end - first * width]


class Scaled:
    """W with each leading row, or each column, times a factor of its own."""

    def __init__(self, header: Header, factor: Callable[[], Tensor], axis: Axis, mark: str) -> None:
        """Takes W, what gives the factors (asked once, when they are needed), and what they belong to."""
        inner = header.derived
        self.origin = header if inner is None else inner.origin
        self.fingerprint = mark if inner is None else f"{inner.fingerprint} {mark}"
        self._header, self._axis, self._given = header, axis, factor

    @cached_property
    def _factor(self) -> Tensor:
        return self._given()

    def fill(self, target: Tensor, start: int, seen: Seen | None = None) -> None:
        """Writes the entries from `start` on; `seen` takes the bytes that W was read from."""
        read_entries(self._header, target, start, seen)
        places = torch.arange(start, start + target.numel())
        width = columns_of(self._header.shape)
        target *= self._factor[places // width if self._axis == "rows" else places % width]


class RowsReplaced:
    """W with some leading rows replaced: tokens that were trained by themselves."""

    def __init__(self, origin: Header, rows: dict[int, Tensor], mark: str) -> None:
        """Takes W and the new rows by index, in float32."""
        self.origin: Header | None = origin
        self.fingerprint = mark
        self._stored, self._rows = origin, rows

    def fill(self, target: Tensor, start: int, seen: Seen | None = None) -> None:
        """Writes the entries from `start` on; `seen` takes the bytes of W."""
        read_entries(self._stored, target, start, seen)
        width, stop = columns_of(self._stored.shape), start + target.numel()
        for row, values in self._rows.items():
            begin, end = max(start, row * width), min(stop, (row + 1) * width)
            if begin < end:
                target[begin - start : end - start] = values[begin - row * width : end - row * width]


def pieces(header: Header) -> Iterator[tuple[int, Tensor]]:
    """Yields a tensor in pieces of whole rows: the first row's index, and the rows, [n, columns]."""
    width = columns_of(header.shape)
    step = max(1, BLOCK // width)
    for first in range(0, header.shape[0], step):
        rows = torch.empty(min(step, header.shape[0] - first) * width)
        read_entries(header, rows, first * width)
        yield first, rows.view(-1, width)


def norms(header: Header, axis: Axis) -> Tensor:
    """Returns the length of each row or column of a tensor, reading it a piece at a time."""
    if axis == "rows":
        return torch.cat([rows.norm(dim=1) for _, rows in pieces(header)])
    total = torch.zeros(columns_of(header.shape), dtype=torch.float64)
    for _, rows in pieces(header):
        total += rows.double().square().sum(0)
    return total.sqrt().float()
