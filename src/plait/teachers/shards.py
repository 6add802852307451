"""One run of the scoring: which shards are done, which come next, and the plain way through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from plait import processes, progress
from plait.boundary import reading
from plait.checkpoints.checkpoint import Checkpoint
from plait.data import Examples, Texts
from plait.errors import DataError
from plait.teachers.files import clear_partial, read_facts, write_shard
from plait.teachers.mc_dropout import Scorer, Turn, opened
from plait.teachers.record import Record
from plait.teachers.settings import Settings
from plait.teachers.store import shard_key, teacher_file, texts_file
from plait.teachers.teacher import Teacher


@dataclass(frozen=True)
class ShardTask:
    """The texts of one shard, and a hash over them."""

    number: int
    examples: Examples
    key: str


@dataclass(frozen=True)
class Scored:
    """What a teacher found of one shard, and what it cost."""

    number: int
    key: str
    limit: int
    forwards: float
    tensors: dict[str, Tensor]


Work = Callable[[Scorer, ShardTask, progress.Tick], None]
"""What is done to one shard by a teacher in memory."""


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


@dataclass
class Run:
    """One call of `score_texts`: a store that is being filled."""

    folder: Path
    record: Record
    settings: Settings
    texts: Texts
    checkpoints: Sequence[Checkpoint]

    @property
    def teachers(self) -> list[Teacher]:
        """Returns the teachers of this run, in order."""
        every = {teacher.name: teacher for teacher in self.record.teachers}
        return [every[checkpoint.name] for checkpoint in self.checkpoints]

    def start(self) -> None:
        """Writes what the store will be, and the hashes of the texts."""
        self.record.write(self.folder)
        clear_partial(self.folder)
        self._clear_rounds()
        numbers = range(self.record.shards)
        if missing := [n for n in numbers if not texts_file(self.folder, n).exists()]:
            for _ in self._pieces(missing):
                pass

    def _clear_rounds(self) -> None:
        """Removes what rounds left of shards that are summed up, or can no longer be.

        A round looks at the passes of all teachers. Where a teacher's summary is gone (it was damaged), those of the
        others are of no use once their passes have been removed: then the shard is scored anew by all.
        """
        if len(self.record.settings.rounds) < 2:
            return
        for number in range(self.record.shards):
            summaries = [self.file(teacher, number) for teacher in self.teachers]
            rounds = [self.rounds_file(teacher, number) for teacher in self.teachers]
            done = [file.exists() for file in summaries]
            if all(done):
                _remove(rounds)
            elif any(summed and not file.exists() for summed, file in zip(done, rounds, strict=True)):
                _remove([*summaries, *rounds])

    def one_by_one(self) -> None:
        """Scores with each teacher, to the end, what it has not scored yet."""
        for checkpoint, teacher in zip(self.checkpoints, self.teachers, strict=True):
            pending = processes.from_first(self._pending(teacher) if processes.rank() == 0 else [])
            if processes.count() > 1:
                self._side_by_side(checkpoint, teacher, pending)
            else:
                self.visit(checkpoint, pending, "scoring with", self._score)
            if processes.rank() == 0:
                self.finish(teacher)

    def _pending(self, teacher: Teacher) -> list[int]:
        return [n for n in range(self.record.shards) if not self.has(self.file(teacher, n), teacher, n)]

    def _side_by_side(self, checkpoint: Checkpoint, teacher: Teacher, pending: Sequence[int]) -> None:
        """Scores some shards in several processes; the first writes what all have found, a shard of each at a time."""
        def score(scorer: Scorer, piece: ShardTask, tick: progress.Tick) -> None:
            tensors = scorer.score(piece.examples, Turn(piece.number, passes=self.settings.passes), tick)
            scored = Scored(piece.number, piece.key, scorer.limit, scorer.meter.forwards, tensors)
            self._gather(teacher, scored)

        own = processes.mine(pending)
        self.visit(checkpoint, own, "scoring with", score)
        if len(own) < -(-len(pending) // processes.count()):
            self._gather(teacher, None)  # the others have one more

    def _gather(self, teacher: Teacher, scored: Scored | None) -> None:
        for one in processes.for_first(scored):
            if one is not None:
                file = self.file(teacher, one.number)
                self.write(file, teacher, one.key, one.limit, one.forwards, one.tensors)

    def visit(self, checkpoint: Checkpoint, pending: Sequence[int], what: str, work: Work) -> None:
        """Calls `work` with a teacher in memory for each of some shards; loads no model when there are none."""
        if not pending:
            return
        with ExitStack() as stack:
            scorer = stack.enter_context(opened(checkpoint, self.settings))
            rows = sum(self._rows(number) for number in pending)
            tick = stack.enter_context(progress.task(f"{what} {checkpoint.name}", rows))
            for piece in self._pieces(pending):
                scorer.meter.reset()
                work(scorer, piece, tick)

    def file(self, teacher: Teacher, number: int) -> Path:
        """Returns where a teacher's shard is, or will be."""
        return teacher_file(self.folder, teacher, number)

    def rounds_file(self, teacher: Teacher, number: int) -> Path:
        """Returns where the passes of a shard are kept until all rounds are over."""
        return self.file(teacher, number).with_suffix(".rounds.safetensors")

    def has(self, file: Path, teacher: Teacher, number: int) -> bool:
        """Says whether a file of a shard is there and is what this run would write.

        Raises:
            DataError: it is damaged, or was made otherwise.
        """
        if not file.exists():
            return False
        key = shard_key(self.folder, number)
        facts, wanted = read_facts(file), {**self._facts(teacher), "texts": key}
        differing = [name for name in wanted if facts.get(name) != wanted[name]]
        if differing:
            raise DataError(
                f"{file}: is of another store (other {', '.join(differing)}); delete it, and it is scored again"
            )
        return True

    def write(  # noqa: PLR0917 - a file and all that is said of it
        self,
        file: Path,
        teacher: Teacher,
        key: str,
        limit: int,
        forwards: float,
        tensors: dict[str, Tensor],
        **more: Any,
    ) -> None:
        """Writes a shard with what it was made from and what it cost."""
        facts = {**self._facts(teacher), "texts": key, "limit": limit, "forwards": forwards, **more}
        write_shard(file, tensors, facts)

    def finish(self, teacher: Teacher) -> None:
        """Writes into the record that a teacher is done, with what it cost."""
        every = [read_facts(self.file(teacher, number)) for number in range(self.record.shards)]
        what, advice = "shards lack what they cost", "delete them, and they are scored again"
        with reading(self.file(teacher, 0).parent, what, error=DataError, advice=advice):
            forwards = {**self.record.forwards, teacher.name: float(sum(facts["forwards"] for facts in every))}
            told = replace(teacher, max_length=int(every[0]["limit"]))
        teachers = tuple(told if t.name == told.name else t for t in self.record.teachers)
        self.record = replace(self.record, teachers=teachers, forwards=forwards)
        self.record.write(self.folder)

    def _score(self, scorer: Scorer, piece: ShardTask, tick: progress.Tick) -> None:
        teacher = next(t for t in self.teachers if t.name == scorer.name)
        tensors = scorer.score(piece.examples, Turn(piece.number, passes=self.settings.passes), tick)
        file = self.file(teacher, piece.number)
        self.write(file, teacher, piece.key, scorer.limit, scorer.meter.forwards, tensors)

    def _facts(self, teacher: Teacher) -> dict[str, Any]:
        return {
            "teacher": teacher.digest,
            "circumstances": teacher.circumstances,
            "settings": self.settings.deciding,
            "keep": self.settings.keep,
        }

    def _rows(self, number: int) -> int:
        return min(self.record.chunk, self.record.texts.count - number * self.record.chunk)

    def _pieces(self, pending: Sequence[int]) -> Iterator[ShardTask]:
        wanted = set(pending)
        for number, (examples, hashes) in enumerate(self.texts.hashed(self.record.chunk)):
            if number in wanted:
                yield ShardTask(number, examples, self._keep_hashes(number, torch.from_numpy(hashes())))
            if number == pending[-1]:
                return

    def _keep_hashes(self, number: int, hashes: Tensor) -> str:
        """Returns the hash of a shard's texts, which are kept, and compared with those kept before."""
        file, key = texts_file(self.folder, number), xxhash.xxh3_128_hexdigest(hashes.numpy().data)
        if processes.rank():
            return key
        if not file.exists():
            write_shard(file, {"hashes": hashes}, {"texts": key})
        elif read_facts(file).get("texts") != key:
            raise DataError(
                f"{self.texts.source}: changed while it was scored; leave it alone, and score it again"
            )
        return key
