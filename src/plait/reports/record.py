"""The record `plait.json` beside every result: one schema, written and read here; and what lies at a path.

Results of Plait 0.1 have records of format 1: a merge without a `kind`, the others with `made_by` and no number.
`_upgraded` turns them into what is written today.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from plait.autoclasses import ENSEMBLE
from plait.boundary import parse_json, read_text, reading, usable_name, validated
from plait.errors import RecipeError, SourceError, listed

FILE = "plait.json"
FORMAT = 2
AGAIN = "make it again"
STORE = "store.json"
"""What a store of posteriors says of itself; `plait.teachers.record` reads it."""
MEMBERS = "members"
"""Where separate models lie."""
BASE = "(base)"
"""The name of the base among the sources; no source can have it."""

Kind = Literal[
    "merged", "student", "ensemble", "one_model", "members", "finetuned", "comparison", "checkpoint", "posteriors",
    "statistics",
]  # fmt: skip
"""What can lie at a path; `one_model` is an ensemble that became one ordinary checkpoint."""


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
    search: Mapping[str, Any] = field(default_factory=dict)
    job: str = ""
    kind: ClassVar[Kind] = "merged"

    def write(self, folder: Path) -> None:
        """Writes the manifest into a folder."""
        _write(folder, "merged", asdict(self))

    def text(self) -> str:
        """Returns the text of the file."""
        return _text("merged", asdict(self))


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
    kind: Literal[
        "sequence_classification", "token_classification", "question_answering", "image_classification", "body"
    ]
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

    tasks: Annotated[dict[PlainName, _Task], Field(min_length=1)]
    sources: dict[str, _Source]
    recipe: _Recipe
    versions: dict[str, str]
    statistics: dict[str, dict[str, Any]] = Field(default_factory=dict)
    scores: dict[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refinement: dict[str, Any] = Field(default_factory=dict)
    heads: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, Any] = Field(default_factory=dict)


class Record(BaseModel):
    """What the records of all other results have in common; what only people read is of any form."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Any
    versions: dict[str, str] = Field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """Returns what was recorded as plain data."""
        return self.model_dump(mode="json", exclude_unset=True)


class _Model(BaseModel):
    """A model that taught another one; what was not kept has no origin."""

    model_config = ConfigDict(extra="allow")

    origin: Place | None
    digest: str | None = None
    revision: Place | None = None
    labels: tuple[str, ...] | None = None


class _StudentRecipe(BaseModel):
    model_config = ConfigDict(extra="allow")

    rename: dict[str, str] = Field(default_factory=dict)


class StudentRecord(Record):
    """The record of an amalgamation: who taught the student what."""

    kind: Literal["student"]
    labels: tuple[str, ...] = ()
    teachers: dict[str, _Model]
    recipe: _StudentRecipe


class _EnsembleRecipe(BaseModel):
    model_config = ConfigDict(extra="allow")

    method: dict[str, Any] = Field(default_factory=dict)
    members: Annotated[int, Field(ge=1, le=10_000)] | None = None
    max_length: Annotated[int, Field(ge=1)] | None = None


class EnsembleRecord(Record):
    """The record of an ensemble, of one model that members became, and of such members."""

    kind: Literal["ensemble", "members"]
    head_kind: str = "sequence_classification"
    members: Annotated[int, Field(ge=1, le=10_000)] = 1
    recipe: _EnsembleRecipe = Field(default_factory=_EnsembleRecipe)
    teachers: dict[str, _Model] = Field(default_factory=dict)


class FinetunedRecord(Record):
    """The record of a fine-tuned checkpoint."""

    kind: Literal["finetuned"]
    base: str
    data: dict[str, Any]


class ComparisonRecord(Record):
    """The record of a comparison: of which sources, and whether it is finished."""

    kind: Literal["comparison"]
    finished: bool = False
    job: str = ""
    failed: tuple[str, ...] = ()
    sources: dict[str, str] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)


class OtherRecord(Record):
    """A `plait.json` that no result of ours has, such as one that names a checkpoint's base and nothing else."""

    kind: Literal["checkpoint"]


_SCHEMAS: dict[Any, type[Record]] = {
    "student": StudentRecord,
    "ensemble": EnsembleRecord,
    "members": EnsembleRecord,
    "finetuned": FinetunedRecord,
    "comparison": ComparisonRecord,
    "checkpoint": OtherRecord,
}
_MAKERS = {"amalgamate": "student", "ensemble": "ensemble", "members": "members", "finetune": "finetuned"}


def write_record(folder: Path, kind: Kind, report: Mapping[str, Any]) -> None:
    """Writes the record of a result other than a merge; what `kind` must have is checked first."""
    _SCHEMAS[kind].model_validate({**report, "kind": kind})
    _write(folder, kind, report)


def _write(folder: Path, kind: Kind, content: Mapping[str, Any]) -> None:
    (folder / FILE).write_text(_text(kind, content), encoding="utf-8")


def _text(kind: Kind, content: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT, **content, "kind": kind}, indent=1, ensure_ascii=False) + "\n"


def read_record(folder: str | Path) -> Manifest | Record | None:
    """Returns the record of what lies in a folder, None where it has none.

    Raises:
        SourceError: it is damaged, or of a newer format; one line with the file and the field.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        return None
    content = parse_json(read_text(file), file, advice=AGAIN)
    if not isinstance(content, dict):
        raise SourceError(f"{file} is damaged: holds a {type(content).__name__}; {AGAIN}")
    content = _upgraded(content)
    version = content.pop("format")
    if not isinstance(version, int):
        raise SourceError(f"{file} is damaged: format is {version!r}, expected a number; {AGAIN}")
    if version > FORMAT:
        raise SourceError(f"{file} has format {version}, this Plait reads up to {FORMAT}: update Plait")
    kind = content.get("kind")
    if kind == "merged":
        return _manifest(content, file)
    if not isinstance(kind, str) or kind not in _SCHEMAS:
        raise SourceError(f"{file} is damaged: kind is {kind!r}, expected {', '.join(('merged', *_SCHEMAS))}; {AGAIN}")
    return validated(_SCHEMAS[kind], content, file, advice=AGAIN)


def _manifest(content: Mapping[str, Any], file: Path) -> Manifest:
    checked = validated(_File, content, file, advice=AGAIN)
    for name, task in checked.tasks.items():
        strangers = [source for source in task.sources if source not in checked.sources]
        if strangers or task.name != name:
            what = f"its source {strangers[0]!r} is not recorded" if strangers else f"it is called {task.name!r}"
            raise SourceError(f"{file} is damaged: tasks.{name}: {what}; {AGAIN}")
    tasks = {name: Task(**task.model_dump()) for name, task in checked.tasks.items()}
    known = {one.name for one in fields(Manifest)} - {"tasks"}
    return Manifest(tasks=tasks, **checked.model_dump(include=known))


def _upgraded(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record in today's form, whatever version of Plait wrote it."""
    found = dict(content)
    if found.get("format", 1) != 1:
        return found
    maker = found.pop("made_by", None)
    if maker in ("ensemble", "members") and "kind" in found:
        found["head_kind"] = found["kind"]
    if maker is None:
        # The base alone is what other programs write, or users by hand.
        merged = "tasks" in found or "format" in found
        ours = "recipe" in found and not merged
        found["kind"] = "merged" if merged else "ensemble" if ours else "checkpoint"
    else:
        found["kind"] = _MAKERS.get(maker, str(maker)) if isinstance(maker, str) else maker
    return {**found, "format": 1}


def read_manifest(folder: str | Path) -> Manifest:
    """Returns the record of a merged checkpoint.

    Raises:
        SourceError: none there, or one that is damaged, of a newer format, or of something else.
    """
    found = read_record(folder)
    if found is None:
        raise SourceError(
            f"{folder} is not a merged checkpoint: it has no {FILE} (make one with plait merge)"
        )
    if not isinstance(found, Manifest):
        raise SourceError(f"{folder} is not a merged checkpoint but {ARTICLES[found.kind]}")
    return found


def report_of(folder: str | Path) -> dict[str, Any]:
    """Returns the record of a result other than a merge as plain data; nothing where there is none.

    Raises:
        SourceError: it is damaged.
    """
    found = read_record(folder)
    return found.report() if isinstance(found, Record) else {}


ARTICLES: Mapping[str, str] = {
    "merged": "a merged checkpoint",
    "student": "a student, an ordinary checkpoint that transformers opens",
    "ensemble": "an ensemble",
    "one_model": "one ordinary model that an ensemble became",
    "members": "the members that became one model; name one of the folders in it",
    "finetuned": "a fine-tuned checkpoint, which transformers opens",
    "comparison": "a comparison; its candidates lie in candidates/ there",
    "checkpoint": "an ordinary checkpoint, which transformers opens",
    "posteriors": "a store of posteriors",
    "statistics": "saved statistics",
}
"""What a message calls each kind."""


def kind_of(place: Any) -> Kind | None:
    """Returns what lies at a path; None for nothing that can be told, such as a Hub id or what is in memory.

    Raises:
        SourceError: its record is damaged.
    """
    if not isinstance(place, str | Path):
        return None
    path = Path(place).expanduser()
    if path.is_file():
        return "statistics" if path.suffix == ".safetensors" else None
    if (path / STORE).is_file():
        return "posteriors"
    model = _model_type(path / "config.json")
    # An ensemble is one even where its record has been lost.
    found = None if model == ENSEMBLE else read_record(path)
    if model == ENSEMBLE or (found is not None and found.kind == "ensemble"):
        return "ensemble" if model == ENSEMBLE or (path / MEMBERS).is_dir() else "one_model"
    if found is None:
        return None if model is None else "checkpoint"
    known: Kind = found.kind
    return known


def _model_type(config: Path) -> str | None:
    """Returns the type that a configuration names, empty where it names none; None without a configuration."""
    if not config.is_file():
        return None
    try:
        with reading(config, "not readable as JSON"):  # not ours: it may hold what our JSON does not
            return str(json.loads(read_text(config)).get("model_type") or "")
    except SourceError:  # whoever opens it says so
        return ""


_REFUSED: Mapping[Kind, str] = {
    "merged": "a merged checkpoint has several heads; plait export one task of it first",
    "ensemble": "an ensemble has several members; plait export it first",
    "members": "holds the members that became one model; name one of the folders in it",
}


def refuse_several(places: Mapping[str, str | Path]) -> None:
    """Raises `RecipeError` naming all of several sources that are not one model: merged checkpoints, ensembles.

    Args:
        places: what messages call each source -> where it lies.
    """
    kinds = {name: kind_of(place) for name, place in places.items()}
    for kind, why in _REFUSED.items():
        if names := [name for name, found in kinds.items() if found == kind]:
            raise RecipeError(f"{listed(names)}: {why}")


def origin_beside(origin: str, result: str | Path) -> str:
    """Returns how a record names a model: a Hub id as it is, a folder relative to that of the result.

    Such a path begins with a dot, which no Hub id does: both can be moved together, and no machine's paths are told.
    """
    folder = Path(origin).expanduser()
    return path_beside(folder, result) if folder.is_dir() else origin


def path_beside(folder: Path, result: str | Path) -> str:
    """Returns the path from the folder of a result to another one, which need not be there yet."""
    try:
        found = os.path.relpath(os.path.realpath(folder), os.path.realpath(result))
    except ValueError:  # on another drive
        return str(folder.resolve())
    path = Path(found).as_posix()
    return path if path.startswith(".") else f"./{path}"


def origin_from(folder: Path, origin: str) -> str:
    """Returns where a model lies that the record in a folder names; 0.1 wrote paths as they were given."""
    beside = Path(os.path.normpath(Path(os.path.realpath(folder)) / origin))
    return str(beside) if origin.startswith(".") and beside.is_dir() else origin


def models_from(folder: Path, told: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the models that the record in a folder names, with where each lies as `origin`; None where none does."""
    places = {name: about.get("origin") for name, about in told.items()}
    return {
        name: {**about, "origin": None if (place := places[name]) is None else origin_from(folder, place)}
        for name, about in told.items()
    }


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
