"""A finished store: what each teacher said of each text, read shard by shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from plait.boundary import reading
from plait.errors import DataError, did_you_mean, listed
from plait.teachers.files import read_facts, read_shard, shard_name
from plait.teachers.record import Record, read_record
from plait.teachers.settings import Settings
from plait.teachers.shapes import Counts, Features, Hashes, Layers, Logits, PerText, Probabilities
from plait.teachers.teacher import Teacher


@dataclass(frozen=True)
class Posterior:
    """What one teacher said of n texts.

    Attributes:
        logits: of one pass without dropout.
        mean: of the Monte Carlo passes' probabilities (without passes: the softmax of the logits).
        expected_entropy: the mean of the passes' entropies, in nats.
        spread: the standard error of the score 1 − H(mean) / log C.
        passes: how many there were.
        features: the classifier's input; None where not kept.
        layers: the mean over tokens of each hidden state, embeddings first; None where not kept.
    """

    logits: Logits
    mean: Probabilities
    expected_entropy: PerText
    spread: PerText
    passes: Counts
    features: Features | None = None
    layers: Layers | None = None


@dataclass(frozen=True)
class Shard:
    """Some of the texts: which rows they are, the hash of each, and the posterior of each teacher."""

    rows: slice
    hashes: Hashes
    posteriors: Mapping[str, Posterior]


@dataclass(frozen=True)
class Cost:
    """Forward passes through the whole encoder per text: by teacher, and of all."""

    teachers: Mapping[str, float]

    @property
    def total(self) -> float:
        """Returns the sum over the teachers."""
        return sum(self.teachers.values())


@dataclass(frozen=True)
class Store:
    """Posteriors on disk; made by `score_texts`, found again by `open_store`."""

    artifact: ClassVar = "posteriors"
    folder: Path
    record: Record
    teachers: tuple[Teacher, ...]

    @property
    def settings(self) -> Settings:
        """Returns how the texts were scored."""
        return self.record.settings

    @property
    def count(self) -> int:
        """Returns the number of texts."""
        return self.record.texts.count

    @property
    def skipped(self) -> int:
        """Returns how many rows of the data had no text."""
        return self.record.texts.skipped

    @property
    def shards(self) -> int:
        """Returns the number of shards."""
        return self.record.shards

    @property
    def cost(self) -> Cost:
        """Returns what the scoring took, as the program counted it."""
        return Cost({t.name: self.record.forwards[t.name] / self.count for t in self.teachers})

    @property
    def hashes(self) -> Hashes:
        """Returns the hash of each text."""
        return torch.cat([self._hashes(number) for number in range(self.shards)])

    def shard(self, number: int) -> Shard:
        """Returns one shard.

        Raises:
            DataError: a file that is missing, damaged, or of other texts or teachers.
        """
        start = number * self.record.chunk
        hashes = self._hashes(number)
        posteriors = {teacher.name: self._posterior(teacher, number) for teacher in self.teachers}
        return Shard(slice(start, start + len(hashes)), hashes, posteriors)

    def posterior(self, name: str) -> Posterior:
        """Returns all that one teacher said."""
        teacher = next((t for t in self.teachers if t.name == name), None)
        if teacher is None:
            raise DataError(
                f"{self.folder}: no teacher {name!r}{did_you_mean(name, [t.name for t in self.teachers])}"
            )
        return _joined([self._posterior(teacher, number) for number in range(self.shards)])

    def _hashes(self, number: int) -> Tensor:
        file = texts_file(self.folder, number)
        with reading(file, "corrupt shard", error=DataError, advice="delete it, and it is scored again"):
            return read_shard(file)[0]["hashes"]

    def _posterior(self, teacher: Teacher, number: int) -> Posterior:
        file = teacher_file(self.folder, teacher, number)
        tensors, facts = read_shard(file)
        of_texts = read_facts(texts_file(self.folder, number))
        if facts.get("teacher") != teacher.digest or facts.get("texts") != of_texts.get("texts"):
            what = "weights" if facts.get("teacher") != teacher.digest else "texts"
            raise DataError(f"{file}: is of other {what}; delete it, and it is scored again")
        with reading(file, "corrupt shard", error=DataError, advice="delete it, and it is scored again"):
            return Posterior(**tensors)


def _joined(parts: Sequence[Posterior]) -> Posterior:
    def join(name: str) -> Tensor | None:
        found = [getattr(part, name) for part in parts]
        return None if any(value is None for value in found) else torch.cat(found)

    return Posterior(**{field.name: join(field.name) for field in fields(Posterior)})  # type: ignore[arg-type]


def texts_file(folder: Path, number: int) -> Path:
    """Returns where the hashes of a shard's texts are."""
    return folder / "texts" / shard_name(number)


def shard_key(folder: Path, number: int) -> str:
    """Returns the hash over the texts of a shard."""
    file = texts_file(folder, number)
    key = read_facts(file).get("texts")
    if key is None:
        raise DataError(f"{file}: corrupt shard (says nothing of its texts); delete it, and it is scored again")
    return str(key)


def teacher_file(folder: Path, teacher: Teacher, number: int) -> Path:
    """Returns where a teacher's shard is."""
    return folder / "teachers" / teacher.folder / shard_name(number)


def open_store(folder: str | Path, teachers: Sequence[str] | None = None) -> Store:
    """Returns a finished store; `teachers` names those wanted (default: all in it), in order.

    Raises:
        DataError: no store, an unfinished one, or no such teacher.
    """
    folder = Path(folder)
    record = read_record(folder)
    known = {teacher.name: teacher for teacher in record.teachers}
    names = list(known) if teachers is None else list(teachers)
    if strangers := [name for name in names if name not in known]:
        raise DataError(f"{folder}: no teacher {strangers[0]!r}{did_you_mean(strangers[0], known)}")
    if unfinished := [name for name in names if name not in record.forwards]:
        raise DataError(f"{folder}: {listed(unfinished)} not scored to the end; run `plait posteriors` again")
    return Store(folder, record, tuple(known[name] for name in names))
