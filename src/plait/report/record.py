"""The record `plait.json` beside every result: what it was made of, and how."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from plait.autoclasses import ENSEMBLE
from plait.boundary import parse_json, read_text, usable_name, validated
from plait.checkpoints.headers import read_json
from plait.errors import SourceError

FILE = "plait.json"
FORMAT = 1
AGAIN = "merge again"
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


def _plain(name: str) -> str:
    if not re.fullmatch(r"\w[\w.+@-]*", name):
        raise ValueError("expected letters, digits, and . _ - + @: it names a folder")
    return name


def _usable(text: str) -> str:
    if not usable_name(text):
        raise ValueError("expected the name of a folder or model")
    return text


PlainName = Annotated[str, AfterValidator(_plain)]
Place = Annotated[str, AfterValidator(_usable)]


class _Task(BaseModel):
    """A task as the file must have it; keys of later versions are not ours to judge."""

    name: PlainName
    architecture: str
    kind: Literal["sequence_classification", "token_classification", "question_answering", "body"]
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None
    labels: Annotated[tuple[str, ...], Field(max_length=1_000_000)] | None
    sources: tuple[str, ...]


class _Source(BaseModel):
    """A source as the file must have it, and whatever else is recorded of it."""

    model_config = ConfigDict(extra="allow")

    origin: Place
    digest: str | None = None
    revision: Place | None = None


class _Recipe(BaseModel):
    """What others read of the recipe."""

    model_config = ConfigDict(extra="allow")

    method: dict[str, Any] = Field(default_factory=dict)
    output: str = "merged"


class _File(BaseModel):
    """The file; what only people read is of any form, and keys of later versions are not ours to judge."""

    model_config = ConfigDict(extra="allow")

    format: Annotated[int, Field(ge=1, le=FORMAT)]
    tasks: Annotated[dict[PlainName, _Task], Field(min_length=1)]
    sources: dict[str, _Source]
    recipe: _Recipe
    versions: dict[str, str]
    statistics: dict[str, dict[str, Any]] = Field(default_factory=dict)
    scores: dict[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refinement: dict[str, Any] = Field(default_factory=dict)
    heads: dict[str, Any] = Field(default_factory=dict)


def is_merged(folder: str | Path) -> bool:
    """Returns whether a folder holds a merged checkpoint of ours."""
    file = Path(folder) / FILE
    if not file.is_file():
        return False
    try:
        content = parse_json(read_text(file), file)
    except SourceError:
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
    content = parse_json(read_text(file), file, advice=AGAIN)
    if not isinstance(content, dict):
        raise SourceError(f"{file} is damaged: holds a {type(content).__name__}; {AGAIN}")
    if maker := content.get("made_by"):
        raise SourceError(
            f"{folder} is no merged checkpoint but one of {maker}: transformers opens it as it is"
        )
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise SourceError(f"{file} has format {version}, this Plait reads up to {FORMAT}: update Plait")
    checked = validated(_File, content, file, advice=AGAIN)
    for name, task in checked.tasks.items():
        strangers = [source for source in task.sources if source not in checked.sources]
        if strangers or task.name != name:
            what = f"its source {strangers[0]!r} is not recorded" if strangers else f"it is called {task.name!r}"
            raise SourceError(f"{file} is damaged: tasks.{name}: {what}; {AGAIN}")
    tasks = {name: Task(**task.model_dump()) for name, task in checked.tasks.items()}
    known = {one.name for one in fields(Manifest)} - {"tasks"}
    return Manifest(tasks=tasks, **checked.model_dump(include=known))


def is_student(folder: str | Path) -> bool:
    """Says whether a student of ours lies at a place."""
    record = Path(folder) / "plait.json"
    try:
        return record.is_file() and read_json(record).get("made_by") == "amalgamate"
    except SourceError:  # damaged: whoever opens it says so
        return False


MEMBERS = "members"
"""Where separate models lie."""


def is_ensemble(place: Any) -> bool:
    """Says whether an ensemble of ours lies at a place, in one model or in several."""
    if not isinstance(place, str | Path):
        return False
    config, record = Path(place) / "config.json", Path(place) / "plait.json"
    if config.is_file():
        return bool(read_json(config).get("model_type") == ENSEMBLE)
    return (Path(place) / MEMBERS).is_dir() and record.is_file()


def is_one_model(place: Any) -> bool:
    """Says whether one ordinary checkpoint lies at a place that an ensemble of ours has become."""
    if not isinstance(place, str | Path) or is_ensemble(place):
        return False
    record = Path(place) / "plait.json"
    try:
        return (Path(place) / "config.json").is_file() and record.is_file() and (
            read_json(record).get("made_by") == "ensemble"
        )  # fmt: skip
    except SourceError:  # damaged: whoever opens it says so
        return False


def versions() -> dict[str, str]:
    """Returns the versions that decide the numbers."""
    from importlib.metadata import version

    import torch
    import transformers

    import plait

    return {
        "plait": plait.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": version("safetensors"),
        "python": platform.python_version(),
    }
