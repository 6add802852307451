"""What a store says of itself in `store.json`, and whether that is what is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from plait.boundary import parse_json, read_text, reading, validated
from plait.errors import DataError, RecipeError, listed
from plait.reports.record import STORE
from plait.teachers.files import write_json
from plait.teachers.settings import Settings
from plait.teachers.teacher import Teacher

FILE = STORE
KIND, VERSION = "posteriors", 1

AGAIN = "delete the folder"
UNREADABLE = "not readable as a store"
HASH = 16
"""Bytes of the hash of a text."""
LOST = 1000
"""Shards that can be missing from a store that was one."""
Count = Annotated[int, Field(ge=0, lt=2**40)]


class _Texts(BaseModel):
    count: Count
    skipped: Count
    fingerprint: str
    source: str


class _Teacher(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=1000)]
    origin: str
    digest: str
    circumstances: str
    labels: tuple[str, ...]
    architecture: str
    max_length: Annotated[int, Field(ge=1)] | None
    finished: bool
    forwards: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class _File(BaseModel):
    """`store.json` as it must be."""

    settings: dict[str, Any]
    chunk: Annotated[int, Field(ge=1, le=2**24)]
    texts: _Texts
    teachers: tuple[_Teacher, ...]


class OtherStoreError(DataError):
    """A store of other texts, teachers or settings than those wanted; `found` says in what it differs."""

    def __init__(self, found: str) -> None:
        """Adds what can be done about it."""
        self.found = found
        super().__init__(
            f"{found}; choose another folder, or make this one anew (plait posteriors --overwrite)"
        )


@dataclass(frozen=True)
class TextFacts:
    """The texts of a store: how many, how many rows had none, a hash over all of them, and where they came from."""

    count: int
    skipped: int
    fingerprint: str
    source: str


@dataclass(frozen=True)
class Record:
    """All that a store knows beside its shards; `forwards` holds by finished teacher its cost in forward passes."""

    settings: Settings
    chunk: int
    texts: TextFacts
    teachers: tuple[Teacher, ...]
    forwards: Mapping[str, float] = field(default_factory=dict)

    @property
    def shards(self) -> int:
        """Returns the number of shards."""
        return -(-self.texts.count // self.chunk)

    def teacher(self, name: str) -> Teacher | None:
        """Returns the teacher of this name, if there is one."""
        return next((teacher for teacher in self.teachers if teacher.name == name), None)

    def write(self, folder: Path) -> None:
        """Writes the record into its folder."""
        teachers = [
            {**asdict(teacher), "finished": teacher.name in self.forwards, "forwards": self.forwards.get(teacher.name)}
            for teacher in self.teachers
        ]  # fmt: skip
        write_json(
            folder / FILE,
            {
                "plait": KIND,
                "version": VERSION,
                "settings": asdict(self.settings),
                "chunk": self.chunk,
                "texts": asdict(self.texts),
                "teachers": teachers,
            },
        )


def read_record(folder: Path) -> Record:
    """Returns what a store says of itself.

    Raises:
        DataError: no store, or one of another version.
    """
    path = folder / FILE
    if not path.is_file():
        raise DataError(f"{folder}: no posterior store (no {FILE}); `plait posteriors` makes one")
    text = read_text(path, error=DataError)
    found = parse_json(text, path, what=UNREADABLE, error=DataError, advice=AGAIN)
    if not isinstance(found, dict):
        raise DataError(f"{path}: {UNREADABLE} (holds a {type(found).__name__}); {AGAIN}")
    kind, version = found.get("plait"), found.get("version")
    if kind != KIND or version != VERSION:
        raise DataError(
            f"{path}: is of kind {kind}, version {version}; expected {KIND}, version {VERSION}; score the texts into "
            "another folder"
        )
    checked = validated(_File, found, path, what=UNREADABLE, error=DataError, advice=AGAIN)
    with reading(path, UNREADABLE, error=DataError, advice=AGAIN):
        settings = settings_from(checked.settings)
    record = Record(
        settings,
        checked.chunk,
        TextFacts(**checked.texts.model_dump()),
        tuple(Teacher.from_record(teacher.model_dump()) for teacher in checked.teachers),
        {t.name: t.forwards for t in checked.teachers if t.finished and t.forwards is not None},
    )
    _check_count(folder, record)
    return record


def settings_from(content: Mapping[str, Any]) -> Settings:
    """Returns settings out of a file; what is wrong with them is wrong with the file."""
    try:
        return Settings(**content)
    except RecipeError as error:
        raise ValueError(str(error)) from None


def _check_count(folder: Path, record: Record) -> None:
    """Raises `DataError` where a record counts more texts than its shards can hold: later steps make room for them."""
    files = list((folder / "texts").glob("*.safetensors"))
    lost = max(0, record.shards - len(files))
    most = sum(file.stat().st_size for file in files) // HASH + lost * record.chunk
    if record.forwards and (record.texts.count > most or lost > LOST):
        raise DataError(
            f"{folder / FILE}: counts {record.texts.count:,} texts in {record.shards:,} shards; the {len(files):,} "
            f"that are there cannot hold so many; {AGAIN}"
        )


def check_same(
    folder: Path, found: Record, texts: TextFacts, teachers: Sequence[Teacher], settings: Settings
) -> None:
    """Raises one `DataError` that names all in which a store differs from what is wanted."""
    problems = [
        *_settings(found.settings, settings),
        *_teachers(found, teachers),
        *_all_teachers(found, teachers),
        *_texts(found.texts, texts),
    ]
    if problems:
        raise OtherStoreError(f"{folder}: the store was made otherwise: {listed(problems)}")


def _settings(found: Settings, wanted: Settings) -> Iterator[str]:
    for name, value in wanted.deciding.items():
        if found.deciding[name] != value:
            yield f"{name} (found {found.deciding[name]}, wanted {value})"
    if not found.keeps(wanted.keep):
        yield f"keep (found {found.keep}, wanted {wanted.keep})"


def _teachers(found: Record, wanted: Sequence[Teacher]) -> Iterator[str]:
    for teacher in wanted:
        known = found.teacher(teacher.name)
        if known is None:
            continue
        if known.digest != teacher.digest:
            yield f"weights of {teacher.name} (found {known.digest[:8]} of {known.origin}, wanted {teacher.digest[:8]})"
        elif known.circumstances != teacher.circumstances or known.labels != teacher.labels:
            yield f"configuration or tokenizer of {teacher.name}"


def _all_teachers(found: Record, wanted: Sequence[Teacher]) -> Iterator[str]:
    """Yields that there are other teachers, where what one is asked depends on what all have said."""
    before, now = (sorted(t.name for t in teachers) for teachers in (found.teachers, wanted))
    if len(found.settings.rounds) > 1 and before != now:
        names = f"found {', '.join(before)}, wanted {', '.join(now)}"
        yield f"teachers, on all of which an early stop depends ({names})"


def _texts(found: TextFacts, wanted: TextFacts) -> Iterator[str]:
    if found.fingerprint != wanted.fingerprint and found.count == wanted.count:
        yield f"texts (found other {found.count} texts, of {found.source})"
    elif found.fingerprint != wanted.fingerprint:
        yield f"texts (found {found.count} of {found.source}, wanted {wanted.count} of {wanted.source})"
