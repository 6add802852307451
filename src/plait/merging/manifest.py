"""The manifest `plait.json` beside every merged checkpoint: what it was made of, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from plait.errors import SourceError

FILE = "plait.json"
FORMAT = 1
BASE = "(base)"
"""The name of the base among the sources; no source can have it."""


@dataclass(frozen=True)
class Task:
    """One task of a merged checkpoint: its head's class, labels and sources."""

    name: str
    architecture: str
    kind: str
    problem_type: str | None
    labels: tuple[str, ...] | None
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything recorded of a merge; written as `plait.json`."""

    tasks: Mapping[str, Task]
    sources: Mapping[str, Mapping[str, Any]]
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    statistics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refinement: Mapping[str, Any] = field(default_factory=dict)
    heads: Mapping[str, Any] = field(default_factory=dict)
    job: str = ""

    def write(self, folder: Path) -> None:
        """Writes the manifest into a folder."""
        content = {"format": FORMAT, **asdict(self)}
        (folder / FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def is_merged(folder: str | Path) -> bool:
    """Returns whether a folder holds a merged checkpoint of ours."""
    file = Path(folder) / FILE
    if not file.is_file():
        return False
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "tasks" in content


def read_manifest(folder: str | Path) -> Manifest:
    """Returns the manifest of a merged checkpoint.

    Raises:
        SourceError: no manifest there, or one that is damaged or of a newer format.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        raise SourceError(
            f"{folder} is not a merged checkpoint: it has no {FILE} (make one with plait merge)"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and (maker := content.get("made_by")):
            raise SourceError(
                f"{folder} is no merged checkpoint but one of {maker}: transformers opens it as it is"
            )
        version = content.pop("format")
        # Keys of later versions are not ours to judge.
        known = {one.name for one in fields(Task)}
        tasks = {
            name: Task(**_tuples({key: value for key, value in task.items() if key in known}))
            for name, task in content.pop("tasks").items()
        }
        manifest = Manifest(tasks=tasks, **_tuples(content))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"{file} is damaged: {error}; merge again") from None
    if version > FORMAT:
        raise SourceError(f"{file} has format {version}, this Plait reads up to {FORMAT}: update Plait")
    return manifest


def _tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
