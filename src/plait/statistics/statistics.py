"""Statistics of one model on some data: named tensors with their provenance, saved as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plait.boundary import parse_json, reading, validated
from plait.checkpoints.output import one_writer, whole_file
from plait.errors import OutputError, SourceError, listed
from plait.tensors import HeadScores, NeuronScores, checksum

METADATA = "plait"
DESCRIPTION = frozenset({"prefix", "shapes", "head", "config"})
"""What provenance says of the model for later steps rather than for readers."""
FORMAT = 1
PATIENCE = 10.0
"""Seconds to wait for another run that is writing the same statistics."""
AGAIN = "estimate them again"


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
            "checksum": checksum(first),
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


class _Provenance(BaseModel):
    """What later steps read of where statistics come from; the rest is for people."""

    model_config = ConfigDict(extra="allow")

    prefix: str | None = None
    shapes: dict[str, tuple[NonNegativeInt, ...]] = Field(default_factory=dict)
    head: tuple[str, ...] = ()
    config: dict[str, Any] = Field(default_factory=dict)


class _Record(BaseModel):
    """The record in a file of statistics."""

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    estimator: str
    provenance: _Provenance = _Provenance()
    aliases: dict[str, str] = Field(default_factory=dict)
    checksum: str | None = None


def load_statistics(path: str | Path) -> Statistics:
    """Returns statistics saved by `Statistics.save`; raises `SourceError` for any other, damaged or changed file."""
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"no statistics at {path}; `plait estimate` writes them")
    with reading(path, "is not a readable safetensors file"), safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA, "{}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = parse_json(text, path, advice=AGAIN)
    if not isinstance(content, dict) or "estimator" not in content:
        raise SourceError(
            f"{path} holds tensors but no statistics of plait; write them with `plait estimate`"
        )
    record = validated(_Record, content, path, advice=AGAIN)
    # Files of before have no checksum; what else is wrong with their values shows below.
    if record.checksum is not None and record.checksum != checksum(tensors):
        raise SourceError(f"{path}: its content is not what was written; {AGAIN}")
    if lost := sorted({owner for owner in record.aliases.values() if owner not in tensors}):
        raise SourceError(f"{path}: is damaged: lacks {listed(lost, 5)}; {AGAIN}")
    _check_values(path, record.estimator, tensors)
    tensors |= {name: tensors[owner] for name, owner in record.aliases.items()}
    return Statistics(record.estimator, tensors, content.get("provenance", {}))


def _check_values(path: Path, estimator: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises `SourceError` for what no estimator gives: values that are not finite, squares below zero."""
    wrong = [name for name, tensor in tensors.items() if _is_wrong(tensor, gram=estimator == "gram")]
    if wrong:
        raise SourceError(f"{path}: {listed(wrong, 5)} negative, NaN or Inf, or of no matrix's shape; {AGAIN}")
    if estimator == "mask_nodes" and not (
        {"heads", "neurons"} <= tensors.keys() and tensors["heads"].dim() == tensors["neurons"].dim() == 2
    ):
        raise SourceError(f"{path}: has no scores of heads and neurons by layer; {AGAIN}")


def _is_wrong(tensor: Tensor, *, gram: bool) -> bool:
    if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
        return True
    if gram and (tensor.dim() != 2 or tensor.shape[0] != tensor.shape[1]):
        return True
    return bool(((tensor.diagonal() if gram else tensor) < 0).any())
