"""The amalgamation, stage by stage: open > score > route > teach > write > report."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait.api.corpus import with_columns
from plait.api.inputs import is_file
from plait.api.labelled import material_of
from plait.api.merging import versions
from plait.api.scoring import score, true_labels
from plait.api.starting import MERGED
from plait.api.students import Student, write_student
from plait.api.teachers import AmalgamationPlan, amalgamation_recipe, check_output, plan
from plait.api.teaching import Taught, judge_of, teach_in_rounds
from plait.checkpoints.source import Checkpoint
from plait.recipe import AmalgamateRecipe
from plait.statistics.posteriors import Store
from plait.training.state import check_accelerate, check_state, full_disk, training_state

logger = logging.getLogger("plait")


def amalgamate(
    teachers: Mapping[str, Any],
    *,
    texts: Any,
    out: str | Path,
    student: str | Path | None = None,
    validation: Any = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **options: Any,
) -> Student:
    """Returns one student over the union of the teachers' labels, taught without labels and written to `out`.

    Args:
        teachers: name -> classifier (folder or Hub id), in order; a value may be a mapping as in a recipe.
        texts: unlabelled texts: a file, a `datasets.Dataset`, a list of texts.
        out: the folder to write, an ordinary checkpoint.
        student: where the student starts: a model, a teacher's name, or `merged` for the average of the teachers;
            default the base that all teachers record.
        validation: labelled data that decides which epoch is kept, instead of agreement with the teachers.
        text: column of the texts, where its name is not a usual one.
        text_pair: column of their pairs.
        label: column of the texts' own labels, for study: gate `oracle`, and how often the gate is right.
        overwrite: whether an existing output is replaced, once the new one is complete.
        resume: go on with a training that was stopped. Posteriors are resumed in any case.
        options: all other fields of a recipe: `gate`, `base`, `temperature`, `target`, `margin`, `agreement`, `rounds`,
            `posterior`, `calibrate`, `objective`, `rename`, `passes`, `last_layers`, `stop`, `dropout`, `limit`,
            `held_back`, `epochs`, `learning_rate`, `batch_size`, `max_length`, `warmup`, `weight_decay`, `precision`,
            `seed`, `report_to`, `store`, `trust_remote_code`.

    Raises:
        PlaitError: anything a user can mend; no student has been written then.
    """
    texts = with_columns(texts, text=text, text_pair=text_pair, label=label)
    recipe = amalgamation_recipe(
        teachers, out=out, texts=texts, student=student, validation=validation, options=options
    )
    return run_amalgamation(
        recipe,
        texts=None if is_file(texts) else texts,
        validation=None if is_file(validation) else validation,
        overwrite=overwrite,
        resume=resume,
    )


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
    check_output(recipe, overwrite=overwrite)
    check_accelerate()
    job = plan(recipe, texts, validation)
    names = ", ".join(t.name for t in job.teachers)
    logger.info("%s teach %d labels on %d texts", names, len(job.space), job.texts.count())
    truth = true_labels(job)
    store, spent = score(job, recipe.store_folder(), overwrite=overwrite and recipe.store is None)
    material, gathered = material_of(job, store, truth)
    out = Path(os.path.realpath(recipe.output))
    with training_state(out, keep=True, resume=resume) as state, full_disk(out):
        check_state(state, identity(job, store))
        taught = teach_in_rounds(job, material, state, resume=resume)
        report = describe_result(job, store, Spent(spent, gathered.passes, gathered.now), taught)
        if job.validation is not None:
            report["validation"] = judge_of(job, taught.tokenizer)(taught.pupil.model)
        report["seconds"] = round(time.monotonic() - started, 1)
        write_student(taught.pupil.model, taught.tokenizer, out, report, overwrite=overwrite)
        shutil.rmtree(state, ignore_errors=True)
    logger.info("posteriors stay in %s: another student of them costs no teacher", store.folder)
    return Student(Path(recipe.output))


def identity(job: AmalgamationPlan, store: Store) -> dict[str, Any]:
    """Returns what must be the same for a training to be resumed."""
    left_out = {"output", "report_to", "store", "sources"}
    return {
        **job.resolved().model_dump(mode="json", exclude=left_out),
        "texts": store.record.texts.fingerprint,
        "judged_on": None if job.validation is None else job.validation.fingerprint,
        "labels": list(job.space.names),
        "teachers": [[t.name, t.digest] for t in store.teachers],
    }


@dataclass(frozen=True)
class Spent:
    """Forward passes per text: of the teachers that the store lacked, of the base in all, and of the base now."""

    teachers_now: float
    base: float
    base_now: float


def describe_result(job: AmalgamationPlan, store: Store, spent: Spent, taught: Taught) -> dict[str, Any]:
    """Returns what is written beside the student: who taught it what, how, and what that cost."""
    teachers, student = store.cost.total, taught.forwards / store.count
    return {
        "made_by": "amalgamate",
        "base": None if job.start.origin == MERGED else job.start.origin,
        "labels": list(job.space.names),
        "teachers": {t.name: describe_teacher(t) for t in job.teachers},
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
            "base_now": round(spent.base_now, 2),
            "student": round(student, 2),
            "total": round(teachers + spent.base + student, 2),
        },
        "versions": versions(),
    }  # fmt: skip


def describe_teacher(teacher: Checkpoint) -> dict[str, Any]:
    """Returns how a teacher is found again, whichever folder is the current one then."""
    place = Path(teacher.origin).expanduser()
    return {
        "origin": str(place.resolve()) if place.is_dir() else teacher.origin,
        "revision": teacher.revision,
        "digest": teacher.digest,
        "architecture": teacher.architecture,
        "labels": list(teacher.labels or ()),
    }


__all__ = ["amalgamate", "check_output", "plan", "run_amalgamation"]
