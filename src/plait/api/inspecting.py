"""What a checkpoint, a merged checkpoint or a statistics file is; what methods there are."""

from __future__ import annotations

import inspect as python_inspect
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from plait.amalgamation.gate import GATES
from plait.amalgamation.objective import OBJECTIVES
from plait.amalgamation.panel import JOINT
from plait.api.ensembles import SavedEnsemble, is_ensemble
from plait.checkpoints.files import read_json
from plait.checkpoints.source import open_checkpoint
from plait.ensembles.consistency import CONSISTENCIES
from plait.ensembles.method import METHODS
from plait.ensembles.perturbation import PERTURBATIONS
from plait.errors import RecipeError, did_you_mean
from plait.merging.manifest import is_merged, read_manifest
from plait.merging.rule import RULES
from plait.registry import Entry, Registry, canonical
from plait.statistics.estimator import ESTIMATORS
from plait.statistics.posteriors import Store, open_store
from plait.statistics.posteriors.record import read_record
from plait.statistics.statistics import load_statistics


def inspect(
    path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Returns what lies at a path, as plain data: a checkpoint (merged, plain, a student), posteriors or statistics.

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
    if is_ensemble(place):
        return inspect_ensemble(SavedEnsemble(place))
    if (place / "store.json").is_file():
        return inspect_store(place)
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


def inspect_ensemble(saved: SavedEnsemble) -> dict[str, Any]:
    """Returns what an ensemble is, how it was made and what it is worth, as plain data."""
    config = saved.config
    kept = (
        "parameters",
        "megabytes",
        "forward_equivalents",
        "sources",
        "data",
        "epochs",
        "validation",
        "recipe",
    )
    return {
        "kind": "ensemble",
        "method": saved.method,
        "members": saved.members,
        "separate_models": len(saved.folders) if len(saved.folders) > 1 else None,
        "family": config.encoder.model_type,
        "layers": config.num_hidden_layers,
        "shared_layers": config.shared_layers if len(saved.folders) == 1 else None,
        "head": config.head,
        "labels": list(saved.labels or ()),
        "problem_type": saved.problem if saved.kind == "sequence_classification" else None,
        **{name: saved.report[name] for name in (*kept, "versions") if name in saved.report},
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
        **taught(source.folder),
    }


def taught(folder: Path) -> dict[str, Any]:
    """Returns who taught a student what, or how an ensemble became one model; nothing for other checkpoints."""
    record = read_json(folder / "plait.json") if (folder / "plait.json").is_file() else {}
    if record.get("made_by") not in ("amalgamate", "ensemble"):
        return {}
    made = ("epochs", "forward_equivalents", "recipe", "versions")
    kept = ("teachers", "averaged", "data", "validation", "who_taught_what", *made)
    return {name: record[name] for name in kept if name in record}


def inspect_store(folder: Path) -> dict[str, Any]:
    """Returns a store of posteriors as plain data, finished or not."""
    record = read_record(folder)
    finished = {t.name: t.name in record.forwards for t in record.teachers}
    if all(finished.values()):
        return describe_store(open_store(folder))
    return {
        "kind": "posteriors, not finished: the command that makes them goes on where it was",
        "texts": record.texts.count,
        "settings": asdict(record.settings),
        "finished": finished,
    }


def describe_store(store: Store) -> dict[str, Any]:
    """Returns a store of posteriors as plain data."""
    cost = {name: round(forwards, 2) for name, forwards in store.cost.teachers.items()}
    return {
        "kind": "posteriors",
        "output": str(store.folder),
        "texts": store.count,
        "skipped": store.skipped,
        "settings": asdict(store.settings),
        "teachers": {t.name: {"model": t.origin, "labels": list(t.labels)} for t in store.teachers},
        "forward_passes_per_text": {**cost, "total": round(store.cost.total, 2)},
        "megabytes": round(sum(f.stat().st_size for f in store.folder.rglob("*.safetensors")) / 1e6, 2),
    }


KINDS: dict[str, Registry[Any]] = {
    "method": RULES,
    "gate": GATES,
    "joint gate": JOINT,
    "objective": OBJECTIVES,
    "ensemble": METHODS,
    "perturbation": PERTURBATIONS,
    "consistency": CONSISTENCIES,
    "importance": ESTIMATORS,
}
"""What there is to choose from: merging methods and the statistics they use, gates and objectives of an amalgamation,
and what an ensemble has.
"""


def methods(name: str | None = None) -> dict[str, dict[str, Any]]:
    """Returns every method by name (or those of one name): what each does, needs and takes.

    Merging methods stand under their name, all others behind what they are: `gate muka`, `importance diagonal`.

    Raises:
        RecipeError: no such name (did you mean).
    """
    every = {
        (known if kind == "method" else f"{kind} {known}"): (kind, registry[known])
        for kind, registry in KINDS.items()
        for known in registry
    }
    if name is not None:
        wanted = canonical(name)
        every = {key: (kind, e) for key, (kind, e) in every.items() if wanted in {e.name, canonical(key)}}
        if not every:
            known = {entry for registry in KINDS.values() for entry in registry}
            raise RecipeError(f"unknown method {name!r}{did_you_mean(name, known)}")
    return {key: {"kind": kind, **describe_method(entry)} for key, (kind, entry) in every.items()}


def describe_method(entry: Entry[Any]) -> dict[str, Any]:
    """Returns one method as plain data, read off its signature and docstring."""
    needs = {"importances": "data", "grams": "data", "base": "base", "labels": "labels"}
    wanted = {needs[name] for name in entry.inputs if name in needs} | set(entry.facts.get("needs", ()))
    wanted |= {"passes"} if entry.facts.get("passes") else set()
    wanted |= {kept} if (kept := entry.facts.get("keep", "none")) != "none" else set()
    return {
        "summary": entry.summary,
        "needs": sorted(wanted),
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
