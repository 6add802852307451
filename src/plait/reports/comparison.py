"""The record `comparison.json`: what was compared, what it scored and cost, and which choice is recommended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from plait.boundary import parse_json, read_text, validated
from plait.errors import SourceError

FILE = "comparison.json"
SCHEMA = 1
AGAIN = "run the comparison again: what is finished is not computed twice"
SEPARATE = "separate"
"""The sources as they are: the candidate that all others are measured by."""

Row = Annotated[list[float | None], Field(max_length=100_000)]


class _Part(BaseModel):
    """Keys of later versions are not ours to judge."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Source(_Part):
    """A model that was compared."""

    name: str
    model: str = ""
    architecture: str | None = None
    base: str | None = None
    tokenizer: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    labels: tuple[str, ...] | None = None
    task: str | None = None
    license: str | None = None
    digest: str | None = None


class ScoredTask(_Part):
    """A task and the rows it was scored on."""

    name: str
    metric: str = ""
    rows: int | None = None
    test_from: str | None = None
    overlap: int | None = None
    labels: tuple[str, ...] | None = None


class Way(_Part):
    """A way of combining, and why these sources cannot go it."""

    way: str
    possible: bool
    reason: str | None = None


class Score(_Part):
    """A score on one task with its interval, and both relative to the sources."""

    metric: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    relative: float | None = None
    relative_low: float | None = None
    relative_high: float | None = None


class Bin(_Part):
    """Answers of similar confidence."""

    confidence: float | None = None
    accuracy: float | None = None
    count: int = 0


class Calibration(_Part):
    """How far confidence is from accuracy."""

    ece: float | None = None
    bins: tuple[Bin, ...] = ()


class Routing(_Part):
    """The share of each label's texts that each teacher taught."""

    labels: tuple[str, ...]
    teachers: tuple[str, ...]
    share: tuple[Row, ...]


class Worst(_Part):
    """The task that lost most."""

    task: str
    relative: float | None = None


class Candidate(_Part):
    """One way of combining the sources, made and measured, or the reason why not."""

    id: str
    way: str = ""
    method: str | None = None
    title: str | None = None
    status: Literal["done", "failed", "skipped", "planned"] = "done"
    reason: str | None = None
    estimated_seconds: float | None = None
    estimated_bytes: float | None = None
    folder: str | None = None
    recipe: dict[str, Any] | None = None
    cell: str | None = None
    scores: dict[str, Score] = Field(default_factory=dict)
    mean_relative: float | None = None
    interval: tuple[float | None, float | None] | None = None
    worst: Worst | None = None
    parameters: float | None = None
    bytes: float | None = None
    latency: dict[str, float | None] = Field(default_factory=dict)
    seconds: float | None = None
    calibration: dict[str, Calibration] = Field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    routing: Routing | None = None
    diversity: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Returns what the page calls it."""
        return self.id

    @property
    def done(self) -> bool:
        """Whether it was made and measured."""
        return self.status == "done"


class Recommended(_Part):
    """The choice, and why."""

    id: str
    reason: str = ""
    prefer: str | None = None
    level_with: tuple[str, ...] = ()


class Pair(_Part):
    """Two sources and how alike their task vectors are, layer by layer."""

    a: str
    b: str
    cosine: Row = Field(default_factory=list)
    sign: Row = Field(default_factory=list)


class Conflicts(_Part):
    """What `merging.conflicts.conflict_map` found."""

    layers: tuple[str, ...]
    pairs: tuple[Pair, ...]
    norms: dict[str, Row] = Field(default_factory=dict)
    origin: str | None = None
    chance: float | None = None
    skipped: tuple[str, ...] = ()


class NodeImportance(_Part):
    """Importance of heads and, on average, of neurons, by layer."""

    heads: tuple[Row, ...] = ()
    neurons: Row = Field(default_factory=list)


class Comparison(_Part):
    """The file; what only people read is of any form."""

    schema_: Annotated[int, Field(alias="schema", ge=1, le=SCHEMA)] = SCHEMA
    plait: str | None = None
    created: str | None = None
    seconds: float | None = None
    machine: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    tasks: tuple[ScoredTask, ...] = ()
    possible: tuple[Way, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    pareto: tuple[str, ...] = ()
    best: str | None = None
    recommended: Recommended | None = None
    conflicts: Conflicts | None = None
    importance: dict[str, NodeImportance] | None = None
    notes: tuple[str, ...] = ()

    @property
    def done(self) -> tuple[Candidate, ...]:
        """Returns the measured candidates, the best first, those without a score last."""
        found = (one for one in self.candidates if one.done)
        return tuple(
            sorted(found, key=lambda one: -(one.mean_relative if one.mean_relative is not None else -1e9))
        )

    @property
    def choice(self) -> Candidate | None:
        """Returns the recommended candidate."""
        wanted = self.recommended.id if self.recommended else None
        return next((one for one in self.candidates if one.id == wanted), None)

    def known(self, ids: tuple[str, ...]) -> tuple[Candidate, ...]:
        """Returns those measured candidates that have one of these names, the best first."""
        return tuple(one for one in self.done if one.id in ids)


def checked(content: Mapping[str, Any], where: object = FILE) -> Comparison:
    """Returns a comparison as the record must have it.

    Raises:
        SourceError: one that is damaged or of a newer schema; one line with the fields.
    """
    found = content.get("schema", SCHEMA)
    if isinstance(found, int) and found > SCHEMA:
        raise SourceError(f"{where} has schema {found}, this Plait reads up to {SCHEMA}: update Plait")
    return validated(Comparison, content, where, advice=AGAIN)


def read_comparison(folder: Path) -> dict[str, Any]:
    """Returns the record of a comparison as plain data.

    Raises:
        SourceError: none there, or a damaged one.
    """
    file = folder / FILE
    if not file.is_file():
        raise SourceError(f"{folder} has no {FILE}; a comparison is made with plait compare")
    content = parse_json(read_text(file), file, advice=AGAIN)
    if not isinstance(content, dict):
        raise SourceError(f"{file} is damaged: holds a {type(content).__name__}; {AGAIN}")
    return content
