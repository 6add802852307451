"""An amalgamation, stage by stage: open, score, route, train, write, report."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.amalgamation.initialization import MERGED
from plait.amalgamation.plan import AmalgamationPlan, check_output, open_teachers, plan
from plait.amalgamation.rounds import TrainedStudent, evaluator_of, train_in_rounds, training_inputs
from plait.amalgamation.student import Student, write_student
from plait.amalgamation.targets import routing_columns
from plait.amalgamation.texts import open_corpus, store_record, warn_of_places, with_columns
from plait.boundary import load_json
from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.lineage import lineage
from plait.checkpoints.output import write_whole
from plait.checkpoints.places import check_apart
from plait.checkpoints.writer import writing
from plait.data.texts import Texts
from plait.data.writing import write_table
from plait.errors import DataError, RecipeError, did_you_mean, listed
from plait.hub import locate
from plait.recipe import AmalgamateRecipe
from plait.recipe.arguments import amalgamation_recipe, is_file
from plait.reports.record import origin_beside, versions
from plait.teachers import Settings, Store, score_texts
from plait.teachers.files import check_place
from plait.teachers.record import FILE, OtherStoreError, Record, check_same
from plait.teachers.scoring import text_facts
from plait.teachers.teacher import check_mc_dropout, teacher_of
from plait.training.state import (
    check_accelerate,
    check_state,
    finished_job,
    full_disk,
    is_finished,
    job_key,
    training_state,
)

logger = logging.getLogger("plait")


def run_amalgamation(
    recipe: AmalgamateRecipe,
    *,
    texts: Any = None,
    validation: Any = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Student:
    """Returns the student of a recipe; `texts` and `validation` are what is in memory."""
    started = time.monotonic()
    ended = resume and finished_job(recipe.output) is not None
    check_output(recipe, overwrite=overwrite or ended)
    check_accelerate()
    with writing(recipe.output, overwrite=overwrite or ended):
        job = plan(recipe, texts, validation)
        if not (ended and is_finished(recipe.output, identity(job))):
            check_output(recipe, overwrite=overwrite)
            _taught(job, started, overwrite=overwrite, resume=resume)
    return Student(Path(recipe.output))


def _taught(job: AmalgamationPlan, started: float, *, overwrite: bool, resume: bool) -> None:
    recipe = job.recipe
    names = ", ".join(t.name for t in job.teachers)
    logger.info("%s teach %d labels on %d texts", names, len(job.space), job.texts.count())
    truth = true_labels(job)
    out = Path(os.path.realpath(recipe.output))
    same = identity(job)
    with training_state(out, keep=True, resume=resume) as state, full_disk(out):
        check_state(state, same)
        store, spent = score(job, recipe.store_folder(), state, overwrite=overwrite and recipe.store is None)
        material, gathered = training_inputs(job, store, truth)
        taught = train_in_rounds(job, material, state, resume=resume)
        report = {**describe_result(job, store, Spent(spent, gathered.passes), taught), "job": job_key(same)}
        if job.validation is not None:
            report["validation"] = evaluator_of(job, taught.tokenizer)(taught.pupil.model)
        report["seconds"] = round(time.monotonic() - started, 1)
        if recipe.routing is not None:
            write_table(Path(recipe.routing), routing_columns(taught.given, job.texts.chunks()))
        write_student(taught.pupil.model, taught.tokenizer, out, report, overwrite=overwrite)
        shutil.rmtree(state, ignore_errors=True)
    logger.info("posteriors stay in %s: another student of them costs no teacher", store.folder)


def identity(job: AmalgamationPlan) -> dict[str, Any]:
    """Returns what must be the same for a training to be resumed."""
    left_out = {"output", "report_to", "store", "routing", "sources"}
    return {
        **job.resolved().model_dump(mode="json", exclude=left_out),
        "texts": text_facts(job.texts).fingerprint,
        "judged_on": None if job.validation is None else job.validation.fingerprint,
        "labels": list(job.space.names),
        "teachers": [[t.name, t.digest] for t in job.teachers],
    }


@dataclass(frozen=True)
class Spent:
    """Forward passes per text: of the teachers that the store lacked when the job began, and of the base."""

    teachers_now: float
    base: float


def describe_result(job: AmalgamationPlan, store: Store, spent: Spent, taught: TrainedStudent) -> dict[str, Any]:
    """Returns what is written beside the student: who taught it what, how, and what that cost."""
    teachers, student = store.cost.total, taught.forwards / store.count
    return {
        "base": None if job.start.origin == MERGED else origin_beside(str(job.start.origin), job.recipe.output),
        **start_told(job),
        "labels": list(job.space.names),
        "teachers": {t.name: describe_teacher(t, job.recipe.output) for t in job.teachers},
        "recipe": job.resolved().model_dump(mode="json", exclude_none=True),
        "data": {"source": job.texts.source, "texts": store.count, "skipped": job.skipped},
        "settings": asdict(store.settings),
        "who_taught_what": taught.rounds[-1],
        **({"rounds_before": taught.rounds[:-1]} if len(taught.rounds) > 1 else {}),
        "epochs": taught.learned.epochs,
        "forward_equivalents": {
            "teachers": round(teachers, 2),
            "teachers_now": round(spent.teachers_now, 2),
            "base": round(spent.base, 2),
            "student": round(student, 2),
            "total": round(teachers + spent.base + student, 2),
        },
        "versions": versions(),
    }  # fmt: skip


def start_told(job: AmalgamationPlan) -> dict[str, Any]:
    """Returns what the student started from, with its Hub id and licence; nothing where the teachers were merged."""
    start = job.start
    if start.origin == MERGED:
        return {}
    return {"start": {"origin": start.origin, **lineage(start.origin, locate(start.origin, start.revision))}}


def describe_teacher(teacher: Checkpoint, output: str) -> dict[str, Any]:
    """Returns how a teacher is found again, whichever folder is the current one then."""
    return {
        "origin": origin_beside(teacher.origin, output),
        "revision": teacher.revision,
        "digest": teacher.digest,
        "architecture": teacher.architecture,
        "labels": list(teacher.labels or ()),
        **lineage(teacher.origin, teacher.folder, teacher.recorded_base),
    }


BEGUN = "begun.json"
"""Which teachers the store had heard to the end when the job began."""


@dataclass(frozen=True)
class Scoring:
    """What `posteriors` was asked for, opened and checked."""

    texts: Texts
    teachers: tuple[Checkpoint, ...]
    settings: Settings
    known: Record | None = None


def scoring_of(
    teachers: Mapping[str, Any] | Sequence[str | Path],
    *,
    texts: Any,
    out: str | Path,
    trust_remote_code: bool = False,
    limit: int | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    **settings: Any,
) -> Scoring:
    """Returns what the arguments of `posteriors` spell.

    Raises:
        PlaitError: anything a user can mend.
    """
    texts = with_columns(texts, text=text, text_pair=text_pair)
    recipe = amalgamation_recipe(
        teachers, out=out, texts=texts, student=None, validation=None,
        options={
            "trust_remote_code": trust_remote_code, "limit": limit, "seed": settings.get("seed", 0),
            "store": str(out),
        },
    )  # fmt: skip
    known = [f.name for f in fields(Settings)]
    if unknown := [name for name in settings if name not in known]:
        raise RecipeError(f"posteriors: unknown option {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    check_apart(out, *(teacher.model for teacher in recipe.sources.values()), recipe.text)
    chosen = Settings(**{"max_length": recipe.max_length, "keep": "features", **settings})
    stored = store_record(recipe)
    opened, _ = open_corpus(recipe, None if is_file(texts) else texts, stored)
    return Scoring(opened, open_teachers(recipe), chosen, stored)


def posteriors_plan(
    teachers: Mapping[str, Any] | Sequence[str | Path], *, out: str | Path, overwrite: bool = False, **asked: Any
) -> dict[str, Any]:
    """Returns what `posteriors` would do with the same arguments, as plain data; scores nothing.

    Raises:
        PlaitError: anything that would stop it before its first computation.
    """
    job, folder = scoring_of(teachers, out=out, **asked), Path(out)
    check_mc_dropout(job.teachers, job.settings)
    check_place(folder, FILE)
    if job.known is not None and not overwrite:
        wanted = tuple(teacher_of(teacher) for teacher in job.teachers)
        check_same(folder, job.known, text_facts(job.texts), wanted, job.settings)
    there = frozenset() if overwrite else finished(job.known)
    return {
        "texts": job.texts.count(),
        "skipped": job.texts.skipped,
        "settings": asdict(job.settings),
        "teachers": {
            t.name: {"model": t.origin, "labels": list(t.labels or ()), "finished": t.digest in there}
            for t in job.teachers
        },
        "output": str(out),
    }


def score(
    job: AmalgamationPlan, folder: Path, state: Path | None = None, *, overwrite: bool
) -> tuple[Store, float]:
    """Returns the teachers' posteriors, and the forward passes per text of the teachers that the store lacked.

    A store beside the output belongs to it: with `overwrite`, one of other texts or settings is made anew. What a store
    lacked when the job began is noted in `state`: a resumed run tells the cost of all of the job.
    """
    make = partial(score_texts, folder, job.texts, job.teachers, job.settings)
    note = None if state is None else state / BEGUN
    before = _noted(note) if note and note.is_file() else _note(note, finished(job.known))
    try:
        store = make()
    except OtherStoreError as error:
        if not overwrite:
            raise
        logger.info("%s; it is made anew", error.found)
        before = _note(note, frozenset())
        store = make(overwrite=True)
    warn_of_twins(store)
    return store, sum(store.cost.teachers[t.name] for t in store.teachers if t.digest not in before)


def _noted(note: Path) -> frozenset[str]:
    return frozenset(map(str, load_json(note, list, error=DataError, advice="start again without resume")))


def _note(note: Path | None, digests: frozenset[str]) -> frozenset[str]:
    if note is not None:
        write_whole(note, (json.dumps(sorted(digests)) + "\n").encode())
    return digests


def warn_of_twins(store: Store) -> None:
    """Warns of teachers with equal weights: neither is ever ahead of the other."""
    names: dict[str, list[str]] = {}
    for teacher in store.teachers:
        names.setdefault(teacher.digest, []).append(teacher.name)
    for same in names.values():
        if len(same) > 1:
            logger.warning(
                "teachers %s have the same weights: leave all but one of them out", ", ".join(same)
            )


def finished(record: Record | None) -> frozenset[str]:
    """Returns the digests of the teachers that a store has heard to the end; none where there is no store."""
    if record is None:
        return frozenset()
    return frozenset(teacher.digest for teacher in record.teachers if teacher.name in record.forwards)


def true_labels(job: AmalgamationPlan) -> Tensor | None:
    """Returns the texts' own labels as positions in the union, −1 for others, where their column is named.

    Names are matched whatever their casing, as those of validation data are; a text may have no label. Numbers that
    are no names are places in the union, as in validation data.
    """
    names = job.space.names
    exact = {name: at for at, name in enumerate(names)}
    folded = Counter(name.casefold() for name in names)
    loose = {name.casefold(): at for name, at in exact.items() if folded[name.casefold()] == 1}
    found: list[int] = []
    strange: Counter[str] = Counter()
    numbered = any(name.strip().isdigit() for name in names)
    for chunk in job.texts.chunks():
        if chunk.labels is None:
            return None
        for label in chunk.labels:
            name = _named(
                label, chunk.label_names or (names if isinstance(label, int) and not numbered else None)
            )
            at = -1 if name is None else exact.get(name, loose.get(name.casefold(), -1))
            strange.update([name] if name is not None and at < 0 else [])
            found.append(at)
    if max(found) < 0:
        raise DataError(f"{job.texts.source}: none of its labels is one of the union ({listed(names)})")
    if not numbered:
        warn_of_places(job.texts.source, next(job.texts.chunks()), names)
    if strange:
        logger.warning(
            "%s: %d texts have labels that no teacher knows (%s); they have no part in the routing accuracy",
            *(job.texts.source, strange.total(), listed(sorted(strange), 5)),
        )
    return torch.tensor(found)


def _named(label: Any, names: Sequence[str] | None) -> str | None:
    """Returns a label's name; None where the text has none."""
    if label is None:
        return None
    return names[label] if names and isinstance(label, int) and 0 <= label < len(names) else str(label)
