"""The expensive stage, done once: every teacher scores every text, and what it says is kept."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from plait import progress
from plait.checkpoints.source import Checkpoint
from plait.data import Examples, Texts
from plait.errors import DataError
from plait.statistics.posteriors.files import (
    check_place,
    check_room,
    clear_partial,
    read_facts,
    read_shard,
    size_of,
    write_shard,
)
from plait.statistics.posteriors.record import FILE, Record, TextFacts, check_same, read_record
from plait.statistics.posteriors.scorer import Scorer, Turn, opened
from plait.statistics.posteriors.settings import Settings
from plait.statistics.posteriors.store import Store, open_store, teacher_file, texts_file
from plait.statistics.posteriors.teacher import Teacher, check_teachers, teacher_of

logger = logging.getLogger("plait")


def score_texts(
    folder: str | Path,
    texts: Texts,
    teachers: Sequence[Checkpoint],
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
) -> Store:
    """Returns the store in `folder`, in which every teacher has scored every text.

    What is there already is not computed again: an interrupted run goes on at the shard where it was, and a store can
    be given further teachers. One teacher is in memory at a time, and texts are read chunk by chunk.

    Args:
        folder: where the store is, or will be.
        texts: what is scored.
        teachers: classifiers of texts, each with a name of its own.
        settings: how; 16 Monte Carlo passes by default.
        overwrite: begin anew where there is a store already.

    Raises:
        SourceError: checkpoints that cannot teach.
        DataError: no texts, a store of other texts, teachers or settings, or a damaged one.
        OutputError: something else is in the folder, or the disk has not room enough.
    """
    folder, settings = Path(folder), settings or Settings()
    check_teachers(teachers)
    check_place(folder, FILE)
    wanted = tuple(teacher_of(checkpoint) for checkpoint in teachers)
    facts = text_facts(texts)
    if (folder / FILE).is_file() and not overwrite:
        record = _continued(folder, facts, wanted, settings)
    else:
        record = Record(settings, texts.chunk, facts, wanted)
        _clear(folder, _bytes(record, teachers))
    run = _Run(folder, record, replace(record.settings, batch_size=settings.batch_size), texts, teachers)
    run.start()
    run.all_teachers()
    return open_store(folder, [teacher.name for teacher in wanted])


def text_facts(texts: Texts) -> TextFacts:
    """Returns number and fingerprint of the texts, whatever the chunks they come in: one pass."""
    total, count = xxhash.xxh3_128(), 0
    for examples in texts.chunks():
        hashes = hash_texts(examples)
        total.update(hashes.numpy().data)
        count += len(hashes)
    return TextFacts(count, texts.skipped, total.hexdigest(), texts.source)


def hash_texts(examples: Examples) -> Tensor:
    """Returns the xxh3-128 of each text and its pair as two integers: [n, 2]."""
    pairs = examples.pairs or ()
    whole = (f"{a}\0{b}" for a, b in zip(examples.texts, pairs, strict=True)) if pairs else examples.texts
    try:
        digests = b"".join(xxhash.xxh3_128_digest(text.encode()) for text in whole)
    except UnicodeEncodeError as error:
        raise DataError(
            f"{examples.source}: a text holds half a character ({error}); mend the file"
        ) from None
    return torch.from_numpy(np.frombuffer(bytearray(digests), dtype="<i8").reshape(-1, 2))


def _continued(folder: Path, facts: TextFacts, wanted: Sequence[Teacher], settings: Settings) -> Record:
    """Returns the record of the store that is there, with the teachers that are new to it."""
    found = read_record(folder)
    check_same(folder, found, facts, wanted, settings)
    new = tuple(teacher for teacher in wanted if found.teacher(teacher.name) is None)
    return replace(found, teachers=(*found.teachers, *new))


def _clear(folder: Path, needed: int) -> None:
    """Makes room for a new store."""
    check_room(folder, needed - (size_of(folder) if folder.is_dir() else 0))
    for part in ("texts", "teachers"):
        shutil.rmtree(folder / part, ignore_errors=True)


def _bytes(record: Record, teachers: Sequence[Checkpoint]) -> int:
    """Returns about how many bytes a store takes, and what it takes for a time while texts may stop early."""
    settings, each = record.settings, 16
    for teacher in teachers:
        classes, config = len(teacher.labels or ()), teacher.config
        width = int(getattr(config, "hidden_size", 0))
        each += 8 * classes + 12
        each += 2 * width * settings.keeps("features")
        each += 2 * width * (int(getattr(config, "num_hidden_layers", 0)) + 1) * settings.keeps("layers")
        each += 4 * classes * settings.passes * (len(settings.rounds) > 1)
    return each * record.texts.count


@dataclass
class _Run:
    """One call of `score_texts`."""

    folder: Path
    record: Record
    settings: Settings
    texts: Texts
    checkpoints: Sequence[Checkpoint]

    def start(self) -> None:
        """Writes what the store will be, before anything is in it."""
        self.record.write(self.folder)
        clear_partial(self.folder)

    def all_teachers(self) -> None:
        """Scores with each teacher what it has not scored yet."""
        for checkpoint in self.checkpoints:
            teacher = self.record.teacher(checkpoint.name)
            assert teacher is not None
            self._score(checkpoint, teacher)
            self._finish(teacher)

    def _pending(self, teacher: Teacher) -> list[int]:
        return [number for number in range(self.record.shards) if not self._done(teacher, number)]

    def _done(self, teacher: Teacher, number: int) -> bool:
        file = teacher_file(self.folder, teacher, number)
        if not file.exists():
            return False
        facts, wanted = read_facts(file), self._facts(teacher)
        differing = [name for name in wanted if facts.get(name) != wanted[name]]
        if differing:
            raise DataError(
                f"{file}: is of another store (other {', '.join(differing)}); delete it, and it is scored again"
            )
        return True

    def _facts(self, teacher: Teacher) -> dict[str, Any]:
        return {
            "teacher": teacher.digest,
            "circumstances": teacher.circumstances,
            "settings": self.settings.deciding,
            "keep": self.settings.keep,
        }

    def _score(self, checkpoint: Checkpoint, teacher: Teacher) -> None:
        pending = self._pending(teacher)
        if not pending:
            return
        rows = sum(self._rows(number) for number in pending)
        with ExitStack() as stack:
            scorer = stack.enter_context(opened(checkpoint, self.settings))
            tick = stack.enter_context(progress.task(f"scoring with {teacher.name}", rows))
            for number, examples, key in self._chunks(pending):
                self._shard(scorer, teacher, number, examples, key, tick)

    def _rows(self, number: int) -> int:
        return min(self.record.chunk, self.record.texts.count - number * self.record.chunk)

    def _chunks(self, pending: Sequence[int]) -> Iterator[tuple[int, Examples, str]]:
        """Yields the texts of the shards that are not done, their hashes kept and compared with those kept before."""
        wanted = set(pending)
        for number, examples in enumerate(self.texts.chunks(self.record.chunk)):
            if number in wanted:
                yield number, examples, self._keep_hashes(number, hash_texts(examples))
            if number == pending[-1]:
                return

    def _keep_hashes(self, number: int, hashes: Tensor) -> str:
        file = texts_file(self.folder, number)
        if not file.exists():
            write_shard(file, {"hashes": hashes}, {})
        elif not torch.equal(read_shard(file)[0]["hashes"], hashes):
            raise DataError(
                f"{self.texts.source}: changed while it was scored; leave it alone, and score it again"
            )
        return xxhash.xxh3_128_hexdigest(hashes.numpy().data)

    def _shard(  # noqa: PLR0917 - one shard of one teacher
        self,
        scorer: Scorer,
        teacher: Teacher,
        number: int,
        examples: Examples,
        key: str,
        tick: progress.Tick,
    ) -> None:
        scorer.meter.reset()
        tensors = scorer.score(examples, Turn(number, passes=self.settings.passes), tick)
        facts = {
            **self._facts(teacher),
            "texts": key,
            "forwards": scorer.meter.forwards,
            "limit": scorer.limit,
        }
        write_shard(teacher_file(self.folder, teacher, number), tensors, facts)

    def _finish(self, teacher: Teacher) -> None:
        """Writes into the record that a teacher is done, with what it cost."""
        every = [
            read_facts(teacher_file(self.folder, teacher, number)) for number in range(self.record.shards)
        ]
        forwards = {**self.record.forwards, teacher.name: sum(facts["forwards"] for facts in every)}
        told = replace(teacher, max_length=every[0]["limit"])
        teachers = tuple(told if t.name == told.name else t for t in self.record.teachers)
        self.record = replace(self.record, teachers=teachers, forwards=forwards)
        self.record.write(self.folder)
