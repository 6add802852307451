"""Where sources pull the same parameters in different directions: layer by layer, for each pair of sources."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.writer import Slot
from plait.encoders.topology import Topology, topology_of
from plait.errors import MergeError
from plait.merging.chunks import ChunkReader, Files, StackBuffer, TensorSource, body, flat_chunks
from plait.merging.layout import Layout, numbered
from plait.progress import task

BASE, MEAN = "base", "mean of the sources"
BEFORE, AFTER = "embeddings", "after the layers"


def conflict_map(sources: Sequence[Checkpoint], base: Checkpoint | None = None) -> dict[str, Any]:
    """Returns cosines and sign agreement of the sources' task vectors by layer and pair, as plain data.

    cos_l(a, b) = Σ τ_a τ_b / √(Σ τ_a² Σ τ_b²) and sign_l(a, b) = |{τ_a τ_b > 0}| / |{τ_a τ_b ≠ 0}| over the entries of
    layer l, where τ_j = θ_j − θ_0. Every entry counts once, whatever its size. Without a base θ_0 is the mean of the
    sources: then Σ_j τ_j = 0, and sources that changed independently have cosines around −1/(k − 1) rather than 0
    (`chance`); of two sources the cosine is −1 whatever they learned.

    Args:
        sources: k ≥ 2 checkpoints of one family; the body's parameters that all have in one shape are compared.
        base: θ_0.

    Returns:
        `layers`, `pairs` (`a`, `b`, `cosine` and `sign` per layer, None where nothing was changed), `norms` (by source
        ‖τ‖ per layer), `origin`, `chance`, `skipped` (parameters that differ in shape or are not there everywhere).

    Raises:
        MergeError: fewer than two sources, or nothing that they share.
        SourceError: a file that cannot be read.
    """
    if len(sources) < 2:
        raise MergeError("a conflict map compares sources: give at least two")
    names = list(dict.fromkeys(name for one in sources for name in one.body))
    found = compare_changes([body(one) for one in sources], names, None if base is None else body(base))
    rows = rows_of(list(found.sums), topology_of(sources[0].config))
    return described([one.name for one in sources], found, rows, based=base is not None)


@dataclass(frozen=True)
class Sums:
    """Sums over the entries of one parameter, k×k each: products, entries of one sign, entries both have changed."""

    products: Tensor
    same: Tensor
    both: Tensor

    def __add__(self, other: Sums) -> Sums:
        """Returns the sums over the entries of both."""
        return Sums(self.products + other.products, self.same + other.same, self.both + other.both)


@dataclass(frozen=True)
class Changes:
    """What was summed by parameter, and the parameters that could not be."""

    sums: Mapping[str, Sums]
    skipped: tuple[str, ...]


def compare_changes(
    sources: Sequence[TensorSource], names: Sequence[str], base: TensorSource | None = None
) -> Changes:
    """Returns sums by parameter, reading a chunk of every source at a time: memory does not grow with the model.

    Raises:
        MergeError: no parameter is shared.
    """
    everyone = [*sources, *([] if base is None else [base])]
    shared = [name for name in names if _comparable(everyone, name)]
    if not shared:
        raise MergeError("the sources share no parameter of one shape: no conflict map can be drawn")
    buffer, found = StackBuffer(), {}
    with Files() as files, task("comparing task vectors", len(shared)) as tick, torch.inference_mode():
        for name in shared:
            feeds = [ChunkReader(files, one, name) for one in everyone]
            shape = tuple(everyone[0].header(name).shape)
            pieces = flat_chunks(Slot(name, torch.float32, shape))
            found[name] = sum(
                (sums_of(_task_vectors(buffer.stack(feeds, piece), base is not None)) for piece in pieces),
                start=_nothing(len(sources)),
            )
            tick(1)
    return Changes(found, tuple(name for name in names if name not in found))


def _comparable(everyone: Sequence[TensorSource], name: str) -> bool:
    if any(name not in one for one in everyone):
        return False
    headers = [one.header(name) for one in everyone]
    return all(h.dtype.is_floating_point and tuple(h.shape) == tuple(headers[0].shape) for h in headers)


def _task_vectors(stacked: Tensor, based: bool) -> Tensor:
    """Returns the changes [k, n] in float64: of those stacked the last is the base, where there is one."""
    exact = stacked.flatten(1).double()
    return exact[:-1] - exact[-1] if based else exact - exact.mean(0)


def _nothing(count: int) -> Sums:
    empty = torch.zeros(count, count, dtype=torch.float64)
    return Sums(empty, empty, empty)


def sums_of(changes: Tensor) -> Sums:
    """Returns the sums of one piece of task vectors [k, n]; counts are whole numbers that float64 holds exactly."""
    signs = changes.sign()
    touched = signs.abs()
    both = touched @ touched.T
    return Sums(changes @ changes.T, (signs @ signs.T + both) / 2, both)


def rows_of(names: Sequence[str], table: Topology | None) -> dict[str, str]:
    """Returns by parameter the row of the map that it belongs to, in the order of the forward pass."""
    layout = Layout(names, table)
    numbers = {name: _layer(name, table) for name in names}
    places = {
        name: layer if layer is not None else -math.inf if layout.depth(name) == 0 else math.inf
        for name, layer in numbers.items()
    }
    outside = {-math.inf: BEFORE, math.inf: AFTER}
    return {
        name: outside.get(places[name], f"layer {numbers[name]}")
        for name in sorted(names, key=places.__getitem__)
    }


def _layer(name: str, table: Topology | None) -> int | None:
    """Returns the layer of a parameter, None outside; by its number where the family's table does not know it."""
    with suppress(MergeError):
        if table is not None:
            return table.place(name).layer
    found = numbered(name)
    return None if found is None else found[1]


def described(
    names: Sequence[str], found: Changes, places: Mapping[str, str], *, based: bool
) -> dict[str, Any]:
    """Returns the map as plain data; `places` has the row of each parameter."""
    rows = list(dict.fromkeys(places.values()))
    by_row = {
        row: sum((found.sums[name] for name in places if places[name] == row), start=_nothing(len(names)))
        for row in rows
    }
    pairs = [
        {
            "a": names[i],
            "b": names[j],
            "cosine": [_cosine(by_row[row].products, i, j) for row in rows],
            "sign": [_share(by_row[row], i, j) for row in rows],
        }
        for i, j in itertools.combinations(range(len(names)), 2)
    ]
    norms = {
        name: [_number(by_row[row].products[i, i].sqrt()) for row in rows] for i, name in enumerate(names)
    }
    return {
        "layers": rows,
        "pairs": pairs,
        "norms": norms,
        "origin": BASE if based else MEAN,
        "chance": 0.0 if based else -1 / (len(names) - 1),
        "skipped": list(found.skipped),
    }


def _cosine(products: Tensor, i: int, j: int) -> float | None:
    return _number(products[i, j] / (products[i, i] * products[j, j]).sqrt())


def _share(sums: Sums, i: int, j: int) -> float | None:
    return _number(sums.same[i, j] / sums.both[i, j])


def _number(value: Tensor) -> float | None:
    """Returns a number, None for 0/0 and for sources that are not finite: JSON has neither."""
    return float(value) if math.isfinite(value) else None
