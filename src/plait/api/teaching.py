"""The student's part of an amalgamation: rounds of students that correct the routing, and the one that stays."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from plait.amalgamation.corpus import pack
from plait.amalgamation.distill import Distillation, classifier_path
from plait.amalgamation.evidence import Evidence
from plait.amalgamation.lesson import Lesson, lesson, tables, who_taught_what
from plait.amalgamation.student import Learned, Pupil, answers, teach
from plait.api.starting import starting_point
from plait.api.teachers import AmalgamationPlan
from plait.data import held_back
from plait.errors import SourceError
from plait.evaluation import evaluate_model, predict_logits
from plait.statistics.posteriors import Posterior
from plait.statistics.posteriors.ability import without_padding
from plait.training.heads import Head, open_with
from plait.training.loop import Judge, Schedule
from plait.training.state import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SINGLE: Final[Literal["single_label_classification"]] = "single_label_classification"
FEW_STEPS = 200
"""A student taught in fewer steps is worth a warning (docs/log.md, on small batches)."""
HALVES = 2
"""Students of a round that corrects the routing: each judges the texts that it was not taught on."""
LEAST_MASS = 1e-6
logger = logging.getLogger("plait")


@dataclass(frozen=True)
class Material:
    """What students are taught from.

    Attributes:
        posteriors: per teacher of the corpus's texts, and behind them of the labelled ones that a gate learns from.
        evidence: what else is known of these texts.
        truth: the corpus's own labels, where they are named; −1 where unknown.
    """

    posteriors: Sequence[Posterior]
    evidence: Evidence
    truth: Tensor | None

    @property
    def corpus(self) -> list[Posterior]:
        """Returns the posteriors of the corpus's texts alone."""
        count = len(self.posteriors[0].logits) - self.evidence.extra
        return [first(p, count) for p in self.posteriors]


def first(posterior: Posterior, count: int) -> Posterior:
    """Returns what a teacher said of the first texts."""
    cut: dict[str, Any] = {name: None if v is None else v[:count] for name, v in vars(posterior).items()}
    return Posterior(**cut)


@dataclass
class Taught:
    """What teaching gave: the student that stays, how it went, and who taught what in each round."""

    pupil: Pupil
    tokenizer: PreTrainedTokenizerBase
    learned: Learned
    forwards: float
    rounds: list[dict[str, Any]] = field(default_factory=list)


def teach_in_rounds(job: AmalgamationPlan, material: Material, state: Path, *, resume: bool) -> Taught:
    """Returns the student of the last round; what the rounds before answered has corrected whom it believes.

    Resumes at the student that was being taught: what a finished round said stays in the state.
    """
    mass: Tensor | None = None
    rounds: list[dict[str, Any]] = []
    spent = 0.0
    for number in range(job.rounds):
        given = lesson_of(job, material, mass)
        rounds.append(who_taught_what(given, job.choices, material.truth))
        mass, forwards = correction(job, material, given, state / f"round-{number + 1}", resume=resume)
        spent += forwards
    given = lesson_of(job, material, mass)
    place = state / f"round-{job.rounds + 1}" if job.rounds else state
    with seeded(job.recipe.seed):
        pupil, tokenizer = open_pupil(job, material.corpus, given)
        learned = train_pupil(job, pupil, tokenizer, place, resume=resume)
    rounds.append(who_taught_what(given, job.choices, material.truth))
    return Taught(pupil, tokenizer, learned, spent + learned.forwards, rounds)


def lesson_of(job: AmalgamationPlan, material: Material, mass: Tensor | None) -> Lesson:
    """Returns what is taught, given what the round before answered."""
    return lesson(
        material.posteriors, job.space, job.choices, material.truth, replace(material.evidence, mass=mass)
    )


def correction(
    job: AmalgamationPlan, material: Material, given: Lesson, place: Path, *, resume: bool
) -> tuple[Tensor, float]:
    """Returns log Σ_{c ∈ L_i} q(c|x) per text and teacher, and the forward passes that it took.

    q are the answers of two students, each taught on one half of the texts and asked about the other: a student repeats
    what it was taught on the texts that it was taught on.
    """
    file = place / "mass.safetensors"
    if resume and file.is_file():
        with safe_open(file, framework="pt") as kept:
            return kept.get_tensor("mass"), float((kept.metadata() or {})["forwards"])
    order = np.random.default_rng(job.recipe.seed).permutation(len(given.target))
    halves = [np.sort(order[at::HALVES]) for at in range(HALVES)]
    found = torch.zeros(len(given.target) + material.evidence.extra, len(job.space))
    spent = 0.0
    for at, asked in enumerate(halves):
        with seeded(job.recipe.seed):
            pupil, tokenizer = open_pupil(job, material.corpus, given)
            others = np.sort(np.concatenate([h for other, h in enumerate(halves) if other != at]))
            told = replace(pupil, corpus=pupil.corpus.choose(others))
            schedule, inside = schedule_of(job.recipe), place / f"half-{at + 1}"
            learned = teach(told, inside, schedule=schedule, held=others[:0], resume=resume)
        found[asked] = answers(pupil.model, pupil.corpus.choose(asked), job.recipe.batch_size)
        if material.evidence.extra and job.validation is not None:
            told_of = predict_logits(pupil.model, tokenizer, job.validation, max_length=job.recipe.max_length)
            found[len(given.target) :] += torch.stack(told_of).softmax(-1) / HALVES
        spent += learned.forwards + len(asked)
    mass = mass_of(found, job)
    place.mkdir(parents=True, exist_ok=True)
    save_file({"mass": mass}, file, {"forwards": json.dumps(spent)})
    for half in range(HALVES):
        shutil.rmtree(place / f"half-{half + 1}", ignore_errors=True)
    return mass, spent


def mass_of(answers: Tensor, job: AmalgamationPlan) -> Tensor:
    """Returns the logarithm of what the answers [n, C] give each teacher's labels, [n, t]."""
    known = torch.stack([job.space.known(at) for at in range(len(job.teachers))]).float()
    return (answers @ known.T).clamp(min=LEAST_MASS).log()


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


def schedule_of(recipe: Any) -> Schedule:
    """Returns how long and how fast students learn."""
    return Schedule(
        recipe.epochs, recipe.learning_rate, recipe.batch_size, recipe.warmup, recipe.weight_decay,
        seed=recipe.seed, precision=recipe.precision, report_to=recipe.report_to,
    )  # fmt: skip


def train_pupil(
    job: AmalgamationPlan, pupil: Pupil, tokenizer: PreTrainedTokenizerBase, state: Path, *, resume: bool
) -> Learned:
    """Returns what training the pupil gave: the log and its cost."""
    share = job.recipe.held_back if job.validation is None else 0.0
    rows, held = held_back(len(pupil.corpus), share, job.recipe.seed)
    schedule = schedule_of(job.recipe)
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
        evaluate_model, tokenizer=tokenizer, examples=job.validation, max_length=job.recipe.max_length
    )
