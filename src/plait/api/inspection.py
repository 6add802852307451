"""What lies at a path; apart because what was asked before is answered without torch, and seconds count here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plait.api.answer_cache import answer
from plait.reports.record import kind_of, read_manifest

ADAPTER = "adapter_config.json"
"""The file of an adapter, which is read together with the model that it changes."""


def inspect(
    path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Returns what lies at a path, as plain data: a checkpoint (merged, plain, a student), posteriors or statistics.

    Raises:
        SourceError: nothing there that Plait understands.
    """
    kind = kind_of(path)
    if kind == "merged":
        return inspect_merged(Path(path).expanduser())
    here = Path(path).expanduser()

    def look() -> dict[str, Any]:
        from plait.api.artifacts import INSPECTORS, inspect_checkpoint

        if kind in INSPECTORS:
            return INSPECTORS[kind](here)
        return inspect_checkpoint(str(path), revision, trust_remote_code=trust_remote_code)

    elsewhere = revision is not None or not here.exists() or (here / ADAPTER).exists()  # on the Hub, or in a base
    if elsewhere or trust_remote_code:
        return look()
    return answer("inspect", look, about=here)


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
