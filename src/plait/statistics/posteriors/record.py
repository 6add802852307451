"""What a store says of itself in `store.json`, and whether that is what is wanted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from plait.errors import DataError, listed
from plait.statistics.posteriors.files import write_json
from plait.statistics.posteriors.settings import Settings
from plait.statistics.posteriors.teacher import Teacher

FILE = "store.json"
KIND, VERSION = "posteriors", 1


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
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("plait") != KIND or found.get("version") != VERSION:
            raise DataError(
                f"{path}: is of kind {found.get('plait')}, version {found.get('version')}; expected {KIND}, version "
                f"{VERSION}; score the texts into another folder"
            )
        return Record(
            Settings(**found["settings"]),
            found["chunk"],
            TextFacts(**found["texts"]),
            tuple(Teacher.from_record(teacher) for teacher in found["teachers"]),
            {t["name"]: t["forwards"] for t in found["teachers"] if t["finished"]},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not readable as a store ({error}); delete the folder") from error


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
