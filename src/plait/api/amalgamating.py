"""The amalgamation, stage by stage: open > score > route > teach > write > report."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from plait.amalgamation.corpus import pack
from plait.amalgamation.distill import Distillation, classifier_path
from plait.amalgamation.lesson import Lesson, lesson, tables, who_taught_what
from plait.amalgamation.student import Learned, Pupil, teach
from plait.api.corpus import with_columns
from plait.api.inputs import is_file
from plait.api.merging import versions
from plait.api.scoring import score, true_labels
from plait.api.starting import MERGED, starting_point
from plait.api.students import Student, write_student
from plait.api.teachers import AmalgamationPlan, amalgamation_recipe, check_output, plan
from plait.checkpoints.source import Checkpoint
from plait.data import held_back
from plait.errors import SourceError
from plait.evaluation import evaluate_model
from plait.recipe import AmalgamateRecipe
from plait.statistics.posteriors import Posterior, Store
from plait.statistics.posteriors.ability import without_padding
from plait.training.heads import Head, open_with
from plait.training.loop import Judge, Schedule
from plait.training.state import check_accelerate, check_state, full_disk, seeded, training_state

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SINGLE: Final[Literal["single_label_classification"]] = "single_label_classification"
FEW_STEPS = 200
"""A student taught in fewer steps is worth a warning (docs/log.md, on small batches)."""
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
        options: all other fields of a recipe: `gate`, `temperature`, `target`, `margin`, `posterior`, `calibrate`,
            `objective`, `rename`, `passes`, `last_layers`, `stop`, `dropout`, `limit`, `held_back`, `epochs`,
            `learning_rate`, `batch_size`, `max_length`, `warmup`, `precision`, `seed`, `report_to`, `store`,
            `trust_remote_code`.

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
    posteriors = [store.posterior(t.name) for t in job.teachers]
    taught = lesson(posteriors, job.space, job.choices, truth)
    out = Path(os.path.realpath(recipe.output))
    with training_state(out, keep=True, resume=resume) as state, seeded(recipe.seed), full_disk(out):
        pupil, tokenizer = open_pupil(job, posteriors, taught)
        check_state(state, identity(job, store))
        learned = train_pupil(job, pupil, tokenizer, state, resume=resume)
        report = describe_result(job, store, spent, learned, who_taught_what(taught, job.choices, truth))
        if job.validation is not None:
            report["validation"] = judge_of(job, tokenizer)(pupil.model)
        report["seconds"] = round(time.monotonic() - started, 1)
        write_student(pupil.model, tokenizer, out, report, overwrite=overwrite)
        shutil.rmtree(state, ignore_errors=True)
    logger.info("posteriors stay in %s: another student of them costs no teacher", store.folder)
    return Student(Path(recipe.output))


def open_pupil(
    job: AmalgamationPlan, posteriors: Sequence[Posterior], taught: Lesson
) -> tuple[Pupil, PreTrainedTokenizerBase]:
    """Returns the student with a new head over the union, its texts tokenised, and its tokenizer."""
    recipe, head = job.recipe, Head("sequence_classification", job.space.names, SINGLE)
    with starting_point(recipe, job.start) as start:
        model, tokenizer = open_with(start.origin, head, recipe.trust_remote_code, start.revision)
    if problem := without_padding(model):
        raise SourceError(f"student {start.origin}: {problem}")
    model.config.problem_type = SINGLE
    entry = job.choices.objective_entry
    corpus = pack(
        job.texts.chunks(), tokenizer, model.config, recipe.max_length, tables(posteriors, taught, entry)
    )
    objective = Distillation(entry, job.space.columns, classifier_path(model), job.choices.options)
    return Pupil(model, corpus, objective), tokenizer


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


def train_pupil(
    job: AmalgamationPlan, pupil: Pupil, tokenizer: PreTrainedTokenizerBase, state: Path, *, resume: bool
) -> Learned:
    """Returns what training the pupil gave: the log and its cost."""
    recipe = job.recipe
    share = recipe.held_back if job.validation is None else 0.0
    rows, held = held_back(len(pupil.corpus), share, recipe.seed)
    schedule = Schedule(
        recipe.epochs, recipe.learning_rate, recipe.batch_size, recipe.warmup,
        seed=recipe.seed, precision=recipe.precision, report_to=recipe.report_to,
    )  # fmt: skip
    warn_of_few_steps(len(rows), schedule)
    chosen = replace(pupil, corpus=pupil.corpus.choose(rows))
    judged = job.validation is not None
    return teach(
        chosen, state, schedule=schedule, held=held, judge=judge_of(job, tokenizer) if judged else None,
        best="accuracy" if judged else "agreement", resume=resume,
    )  # fmt: skip


def warn_of_few_steps(texts: int, schedule: Schedule) -> None:
    """Says so where the student will see too few batches to learn much: targets are less sharp than labels."""
    steps = math.ceil(math.ceil(texts / schedule.batch_size) * schedule.epochs)
    if steps < FEW_STEPS:
        logger.warning(
            "the student learns in %d steps only, and below %d it seldom learns enough: give more texts or epochs, or "
            "a smaller batch_size",
            steps, FEW_STEPS,
        )  # fmt: skip


def judge_of(job: AmalgamationPlan, tokenizer: PreTrainedTokenizerBase) -> Judge:
    """Returns what scores the student on the labelled validation data."""
    assert job.validation is not None
    return partial(
        evaluate_model,
        tokenizer=tokenizer,
        examples=job.validation,
        max_length=job.recipe.max_length,
    )


def describe_result(
    job: AmalgamationPlan, store: Store, spent: float, learned: Learned, who: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what is written beside the student: who taught it what, how, and what that cost."""
    teachers = store.cost.total
    return {
        "made_by": "amalgamate",
        "base": None if job.start.origin == MERGED else job.start.origin,
        "labels": list(job.space.names),
        "teachers": {t.name: describe_teacher(t) for t in job.teachers},
        "recipe": job.resolved().model_dump(mode="json", exclude_none=True),
        "data": {"source": job.texts.source, "texts": store.count, "skipped": job.skipped},
        "settings": asdict(store.settings),
        "who_taught_what": dict(who),
        "epochs": learned.epochs,
        "forward_equivalents": {
            "teachers": round(teachers, 2),
            "teachers_now": round(spent, 2),
            "student": round(learned.forwards / store.count, 2),
            "total": round(teachers + learned.forwards / store.count, 2),
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
