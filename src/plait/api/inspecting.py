"""What a checkpoint, a merged checkpoint or a statistics file is; what methods there are."""

from __future__ import annotations

import inspect as python_inspect
from math import prod
from pathlib import Path
from typing import Any

from plait.checkpoints.source import open_checkpoint
from plait.merging.manifest import is_merged, read_manifest
from plait.merging.rule import RULES
from plait.registry import Entry
from plait.statistics.statistics import load_statistics


def inspect(
    path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Returns what lies at a path, as plain data: a merged checkpoint, a plain one, or saved statistics.

    Raises:
        SourceError: nothing there that Plait understands.
    """
    place = Path(path)
    if place.is_file() and place.suffix == ".safetensors":
        found = load_statistics(place)
        shapes = {name: list(tensor.shape) for name, tensor in found.tensors.items()}
        return {
            "kind": "statistics",
            "estimator": found.estimator,
            **found.facts,
            "tensors": shapes,
        }
    if is_merged(place):
        return inspect_merged(place)
    return inspect_checkpoint(str(path), revision, trust_remote_code=trust_remote_code)


def inspect_merged(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a merged checkpoint as plain data."""
    manifest = read_manifest(folder)
    tasks = {
        name: {"head": task.architecture, "labels": list(task.labels or ()), "sources": list(task.sources)}
        for name, task in manifest.tasks.items()
    }
    return {
        "kind": "merged",
        "method": manifest.recipe.get("method"),
        "tasks": tasks,
        "sources": {name: dict(source) for name, source in manifest.sources.items()},
        "megabytes": round(sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e6, 2),
        "scores": dict(manifest.scores),
        "versions": dict(manifest.versions),
    }


def inspect_checkpoint(origin: str, revision: str | None, *, trust_remote_code: bool) -> dict[str, Any]:
    """Returns what a plain checkpoint's headers and config say."""
    source = open_checkpoint(origin, revision=revision, trust_remote_code=trust_remote_code)
    dtypes = sorted({str(header.dtype).removeprefix("torch.") for header in source.headers.values()})
    return {
        "kind": "checkpoint",
        "architecture": source.architecture,
        "family": source.config.model_type,
        "head": source.kind,
        "labels": list(source.labels or ()),
        "problem_type": source.problem_type,
        "body_parameters": sum(prod(source.header(stored).shape) for stored in source.body.values()),
        "head_parameters": sum(prod(source.header(stored).shape) for stored in source.head.values()),
        "dtypes": dtypes,
        "base": source.recorded_base,
        "digest": source.digest,
    }


def methods(name: str | None = None) -> dict[str, dict[str, Any]]:
    """Returns the merging methods (or one of them): summary, what each needs, its options, paper and laws.

    Raises:
        RecipeError: no such method (did you mean).
    """
    entries = [RULES[name]] if name is not None else [RULES[known] for known in RULES]
    return {entry.name: describe_method(entry) for entry in entries}


def describe_method(entry: Entry[Any]) -> dict[str, Any]:
    """Returns one method as plain data, read off its signature and docstring."""
    needs = {"importances": "data", "grams": "data", "base": "base"}
    return {
        "summary": entry.summary,
        "needs": sorted({needs[name] for name in entry.inputs if name in needs}),
        "options": {
            o.name: {"type": spelled(o.annotation), "default": o.default} for o in entry.options.values()
        },
        "paper": entry.facts.get("paper"),
        "laws": sorted(str(getattr(law, "value", law)) for law in entry.facts.get("laws", ())),
        "documentation": python_inspect.getdoc(entry.function) or "",
    }


def spelled(annotation: Any) -> str:
    """Returns an annotation as a user would write it: `float`, or `global | tensor` for a choice."""
    if choices := getattr(annotation, "__args__", None):
        return " | ".join(c.__name__ if isinstance(c, type) else str(c) for c in choices)
    return str(getattr(annotation, "__name__", annotation))
