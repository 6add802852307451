"""The expensive stage, done once: every teacher scores every text, and the scores are kept."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.output import one_writer
from plait.data import Texts
from plait.errors import RecipeError
from plait.processes import count, from_first, rank
from plait.teachers.early_stopping import in_rounds
from plait.teachers.files import check_place, check_room, size_of
from plait.teachers.record import FILE, Record, TextFacts, check_same, read_record
from plait.teachers.settings import Settings
from plait.teachers.shards import Run
from plait.teachers.store import Store
from plait.teachers.teacher import Teacher, check_mc_dropout, check_teachers, teacher_of

SHARD = 512
"""Texts in a shard at most: what is lost when a run is stopped, a minute or two of a small teacher's 17 passes."""
PATIENCE = 2.0
"""Seconds to wait for a run that only looks into the same store, and finds it complete."""


def score_texts(
    folder: str | Path,
    texts: Texts,
    teachers: Sequence[Checkpoint],
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    logits_only: bool = False,
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
        logits_only: nothing but logits is wanted; teachers may then give several labels, or numbers.

    Raises:
        SourceError: checkpoints that cannot teach.
        DataError: no texts, a store of other texts, teachers or settings, or a damaged one.
        OutputError: something else is in the folder, or the disk has not room enough.
    """
    folder, settings = Path(folder), settings or Settings()
    check_teachers(teachers, logits_only=logits_only)
    check_mc_dropout(teachers, settings)
    check_place(folder, FILE)
    with one_writer(folder, patience=PATIENCE) if rank() == 0 else nullcontext():
        return _scored(folder, texts, teachers, settings, overwrite=overwrite)


def _scored(
    folder: Path, texts: Texts, teachers: Sequence[Checkpoint], settings: Settings, *, overwrite: bool
) -> Store:
    """Returns the store in a folder that nobody else writes."""
    wanted = tuple(teacher_of(checkpoint) for checkpoint in teachers)
    facts = text_facts(texts)
    record = None
    if rank():
        pass  # the first process alone knows the folder, which may lie on its own disk
    elif (folder / FILE).is_file() and not overwrite:
        record = _continued(folder, facts, wanted, settings)
    else:
        record = Record(settings, min(texts.chunk, SHARD), facts, wanted)
        _clear(folder, _bytes(record, teachers))
    record = from_first(record)
    assert record is not None
    run = Run(folder, record, replace(record.settings, batch_size=settings.batch_size), texts, teachers)
    if rank() == 0:
        run.start()
    if len(record.settings.rounds) > 1:
        if count() > 1:
            raise RecipeError("--stop decides after each round of passes: run it in one process")
        in_rounds(run)
    else:
        run.one_by_one()
    run.record = from_first(run.record)
    return Store(folder, run.record, tuple(run.teachers))


def text_facts(texts: Texts) -> TextFacts:
    """Returns number and fingerprint of the texts, whatever the chunks they come in."""
    fingerprint = texts.fingerprint
    return TextFacts(texts.count(), texts.skipped, fingerprint, texts.source)


def _continued(folder: Path, facts: TextFacts, wanted: Sequence[Teacher], settings: Settings) -> Record:
    """Returns the record of the store that is there, with the teachers that are new to it."""
    # Read again, now that nobody else writes: another job may have been at it since the plan was made.
    found = read_record(folder)
    check_same(folder, found, facts, wanted, settings)
    new = [teacher for teacher in wanted if found.teacher(teacher.name) is None]
    twins = {teacher.name: twin for teacher in new if (twin := _twin(found, teacher)) is not None}
    for name, twin in twins.items():
        target = replace(twin, name=name)
        shutil.copytree(
            folder / "teachers" / twin.folder, folder / "teachers" / target.folder, dirs_exist_ok=True
        )
    heard = {name: found.forwards[twin.name] for name, twin in twins.items()}
    limits = {name: twin.max_length for name, twin in twins.items()}
    new = [replace(teacher, max_length=limits.get(teacher.name)) for teacher in new]
    return replace(found, teachers=(*found.teachers, *new), forwards={**found.forwards, **heard})


def _twin(found: Record, teacher: Teacher) -> Teacher | None:
    """Returns the same checkpoint under the name by which the store has heard it to the end."""
    same = (teacher.digest, teacher.circumstances, teacher.labels)
    return next(
        (
            other
            for other in found.teachers
            if other.name in found.forwards and (other.digest, other.circumstances, other.labels) == same
        ),
        None,
    )


def _clear(folder: Path, needed: int) -> None:
    """Makes room for a new store."""
    check_room(folder, needed - (size_of(folder) if folder.is_dir() else 0))
    for part in ("texts", "teachers", "base", "update", "labelled"):
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
