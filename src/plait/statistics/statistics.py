"""Statistics of one model on some data: named tensors with their provenance, saved as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plait.checkpoints.output import one_writer, whole_file
from plait.errors import OutputError, SourceError
from plait.tensors import HeadScores, NeuronScores

METADATA = "plait"
DESCRIPTION = frozenset({"prefix", "shapes", "head", "config"})
"""What provenance says of the model for later steps rather than for readers."""
FORMAT = 1
PATIENCE = 10.0
"""Seconds to wait for another run that is writing the same statistics."""


@dataclass(frozen=True)
class Statistics:
    """What an estimator found, and from what: `provenance` is JSON (estimator, options, sources, examples).

    Tensors go by body-relative parameter name, those of the head by their full name; `mask_nodes` holds `heads` [L, h]
    and `neurons` [L, I] instead.
    """

    estimator: str
    tensors: Mapping[str, Tensor]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def of(self, parameter: str) -> Tensor | None:
        """Returns the weights of a parameter, named with or without the prefix of the body; None when there are none.

        Mask nodes are spread over the tensors they belong to by the mapping `paper`; `as_importance` offers others.
        """
        if self.estimator != "mask_nodes":
            return self.tensors.get(self.relative(parameter))
        from plait.statistics.importance import as_importance

        return as_importance(self).of(parameter)

    @property
    def facts(self) -> dict[str, Any]:
        """Returns the provenance that readers want: estimator, options, examples, digests of weights and data."""
        return {name: value for name, value in self.provenance.items() if name not in DESCRIPTION}

    def relative(self, parameter: str) -> str:
        """Returns a parameter's name without the prefix of the body."""
        prefix = self.provenance.get("prefix")
        return parameter.removeprefix(f"{prefix}.") if prefix else parameter

    @property
    def heads(self) -> HeadScores:
        """The Fisher of the attention heads, layer by layer."""
        return self.tensors["heads"]

    @property
    def neurons(self) -> NeuronScores:
        """The Fisher of the FFN neurons, layer by layer."""
        return self.tensors["neurons"]

    def save(self, path: str | Path) -> Path:
        """Returns the path written: a temporary sibling first, renamed when complete."""
        path = Path(path)
        first, aliases = _without_repeats(self.tensors)
        record = {
            "format": FORMAT, "estimator": self.estimator, "provenance": dict(self.provenance), "aliases": aliases,
        }  # fmt: skip
        _write(path, first, {METADATA: json.dumps(record)})
        return path


def _without_repeats(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns each distinct tensor once, and which names repeat another: three projections share one Gram matrix."""
    owners: dict[int, str] = {}
    aliases = {
        name: owners[id(value)]
        for name, value in tensors.items()
        if owners.setdefault(id(value), name) != name
    }
    return {name: tensors[name].contiguous() for name in tensors if name not in aliases}, aliases


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_writer(path, patience=PATIENCE), whole_file(path) as partial:
            save_file(tensors, partial, metadata)
    except (OSError, SafetensorError) as problem:
        raise OutputError(f"cannot write statistics to {path}: {problem}") from problem


def load_statistics(path: str | Path) -> Statistics:
    """Returns statistics saved by `Statistics.save`; raises `SourceError` for any other file."""
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"no statistics at {path}; `plait estimate` writes them")
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as problem:
        raise SourceError(f"{path} is not a readable safetensors file: {problem}") from problem
    if "estimator" not in record:
        raise SourceError(
            f"{path} holds tensors but no statistics of plait; write them with `plait estimate`"
        )
    tensors |= {name: tensors[owner] for name, owner in record.get("aliases", {}).items()}
    return Statistics(record["estimator"], tensors, record.get("provenance", {}))
