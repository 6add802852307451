"""Rounds of students that correct the routing; the inputs of each round, and the student that stays."""

from __future__ import annotations

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
from torch import Tensor

from plait.amalgamation.distillation import (
    Distillation,
    StudentModel,
    TrainingResult,
    answers,
    classifier_path,
    train_student,
)
from plait.amalgamation.gate_inputs import Evidence, Gathered, gather
from plait.amalgamation.initialization import starting_point
from plait.amalgamation.label_space import LabelSpace
from plait.amalgamation.neighbours import nearest
from plait.amalgamation.plan import AmalgamationPlan
from plait.amalgamation.targets import SoftTargets, routing_report, soft_targets, tables
from plait.checkpoints.sealed import read_sealed, write_sealed
from plait.data import Examples, Texts, align_labels, held_back, open_texts
from plait.encoders.heads import Head
from plait.encoders.modes import seeded
from plait.errors import RecipeError, SourceError
from plait.evaluation import evaluate_model, predict_logits
from plait.teachers import Posterior, Store, score_texts
from plait.teachers.record import OtherStoreError
from plait.teachers.scoring import text_facts
from plait.teachers.teacher import without_padding
from plait.training.corpus import pack
from plait.training.heads import open_with
from plait.training.trainer import Evaluator, Schedule

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
class TrainingInputs:
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
class TrainedStudent:
    """What teaching gave: the student that stays, how it went, what it was given, and who taught what in each round."""

    pupil: StudentModel
    tokenizer: PreTrainedTokenizerBase
    learned: TrainingResult
    forwards: float
    given: SoftTargets
    rounds: list[dict[str, Any]] = field(default_factory=list)


def train_in_rounds(job: AmalgamationPlan, material: TrainingInputs, state: Path, *, resume: bool) -> TrainedStudent:
    """Returns the student of the last round; what the rounds before answered has corrected whom it believes.

    Resumes at the student that was being taught: what a finished round said stays in the state.
    """
    mass: Tensor | None = None
    rounds: list[dict[str, Any]] = []
    spent = 0.0
    for number in range(job.rounds):
        taught = targets_of(job, material, mass)
        rounds.append(routing_report(taught, job.choices, material.truth))
        mass, forwards = correction(job, material, taught, state / f"round-{number + 1}", resume=resume)
        spent += forwards
    taught = targets_of(job, material, mass)
    place = state / f"round-{job.rounds + 1}" if job.rounds else state
    with seeded(job.recipe.seed):
        pupil, tokenizer = open_student_model(job, material.corpus, taught)
        learned = train_once(job, pupil, tokenizer, place, resume=resume)
    rounds.append(routing_report(taught, job.choices, material.truth))
    return TrainedStudent(pupil, tokenizer, learned, spent + learned.forwards, taught, rounds)


def targets_of(job: AmalgamationPlan, material: TrainingInputs, mass: Tensor | None) -> SoftTargets:
    """Returns what is taught, given what the round before answered."""
    return soft_targets(
        material.posteriors, job.space, job.choices, material.truth, replace(material.evidence, mass=mass)
    )


def correction(
    job: AmalgamationPlan, material: TrainingInputs, given: SoftTargets, place: Path, *, resume: bool
) -> tuple[Tensor, float]:
    """Returns log Σ_{c ∈ L_i} q(c|x) per text and teacher, and the forward passes that it took.

    q are the answers of two students, each taught on one half of the texts and asked about the other: a student repeats
    what it was taught on the texts that it was taught on.
    """
    file = place / "mass.safetensors"
    if resume and (sealed := read_sealed(file)) is not None:
        return sealed[0]["mass"], float(sealed[1]["forwards"])
    order = np.random.default_rng(job.recipe.seed).permutation(len(given.target))
    halves = [np.sort(order[at::HALVES]) for at in range(HALVES)]
    distributions = torch.zeros(len(given.target) + material.evidence.extra, len(job.space))
    spent = 0.0
    for at, asked in enumerate(halves):
        with seeded(job.recipe.seed):
            pupil, tokenizer = open_student_model(job, material.corpus, given)
            others = np.sort(np.concatenate([h for other, h in enumerate(halves) if other != at]))
            half_pupil = replace(pupil, corpus=pupil.corpus.choose(others))
            schedule, inside = schedule_of(job.recipe), place / f"half-{at + 1}"
            learned = train_student(half_pupil, inside, schedule=schedule, held=others[:0], resume=resume)
        distributions[asked] = answers(pupil.model, pupil.corpus.choose(asked), job.recipe.batch_size)
        if material.evidence.extra and job.validation is not None:
            logits = predict_logits(pupil.model, tokenizer, job.validation, max_length=job.recipe.max_length)
            distributions[len(given.target) :] += torch.stack(logits).softmax(-1) / HALVES
        spent += learned.forwards + len(asked)
    mass = mass_of(distributions, job)
    write_sealed(file, {"mass": mass}, {"forwards": spent})
    for half in range(HALVES):
        shutil.rmtree(place / f"half-{half + 1}", ignore_errors=True)
    return mass, spent


def mass_of(answers: Tensor, job: AmalgamationPlan) -> Tensor:
    """Returns the logarithm of what the answers [n, C] give each teacher's labels, [n, t]."""
    known = torch.stack([job.space.known(at) for at in range(len(job.teachers))]).float()
    return (answers @ known.T).clamp(min=LEAST_MASS).log()


def open_student_model(
    job: AmalgamationPlan, posteriors: Sequence[Posterior], taught: SoftTargets
) -> tuple[StudentModel, PreTrainedTokenizerBase]:
    """Returns the student with a new head over the union, its texts tokenised, and its tokenizer."""
    recipe, head = job.recipe, Head("sequence_classification", job.space.names, SINGLE)
    with starting_point(job.start) as start:
        model, tokenizer = open_with(
            start.origin, head, recipe.trust_remote_code, start.revision, start.encoder
        )
    if problem := without_padding(model):
        raise SourceError(f"student {start.origin}: {problem}")
    model.config.problem_type = SINGLE
    entry = job.choices.objective_entry
    corpus = pack(
        job.texts.chunks(), tokenizer, model.config, recipe.max_length, tables(posteriors, taught, entry)
    )
    objective = Distillation(entry, job.space.columns, classifier_path(model), job.choices.options)
    return StudentModel(model, corpus, objective), tokenizer


def schedule_of(recipe: Any) -> Schedule:
    """Returns how long and how fast students learn."""
    return Schedule(
        recipe.epochs, recipe.learning_rate, recipe.batch_size, recipe.warmup, recipe.weight_decay,
        seed=recipe.seed, precision=recipe.precision, report_to=recipe.report_to,
    )  # fmt: skip


def train_once(
    job: AmalgamationPlan, pupil: StudentModel, tokenizer: PreTrainedTokenizerBase, state: Path, *, resume: bool
) -> TrainingResult:
    """Returns what training the pupil gave: the log and its cost."""
    share = job.recipe.held_back if job.validation is None else 0.0
    rows, held = held_back(len(pupil.corpus), share, job.recipe.seed)
    schedule = schedule_of(job.recipe)
    warn_of_few_steps(len(rows), schedule)
    chosen = replace(pupil, corpus=pupil.corpus.choose(rows))
    judged = job.validation is not None
    return train_student(
        chosen, state, schedule=schedule, held=held, judge=evaluator_of(job, tokenizer) if judged else None,
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


def evaluator_of(job: AmalgamationPlan, tokenizer: PreTrainedTokenizerBase) -> Evaluator:
    """Returns what scores the student on the labelled validation data."""
    assert job.validation is not None
    return partial(
        evaluate_model, tokenizer=tokenizer, examples=job.validation, max_length=job.recipe.max_length
    )


FEWEST = 8
"""Labelled texts below which a gate cannot learn from them."""


def training_inputs(job: AmalgamationPlan, store: Store, truth: Tensor | None) -> tuple[TrainingInputs, Gathered]:
    """Returns what students are taught from, and the evidence of the corpus with what it cost.

    For the gate `fitted` the teachers read the labelled texts too, into a store beside the corpus's, and gates score
    all together: a gate's scale is that of the texts it sees.

    Raises:
        RecipeError: too few labelled texts for a gate to learn from.
    """
    gathered = gather(job.choices, job.bases, job.teachers, store, job.texts, job.recipe.max_length)
    posteriors = [store.posterior(t.name) for t in job.teachers]
    if job.choices.gate != "fitted":
        return TrainingInputs(posteriors, gathered.evidence, truth), gathered
    assert job.validation is not None
    if len(job.validation) < FEWEST:
        raise RecipeError(f"gate fitted: {len(job.validation)} labelled texts; give {FEWEST} or more, or --gate auto")
    texts = open_texts(job.validation.unlabelled())
    beside = score_labelled(job, store, texts)
    more = gather(job.choices, job.bases, job.teachers, beside, texts, job.recipe.max_length)
    both = [joined(p, beside.posterior(t.name)) for p, t in zip(posteriors, job.teachers, strict=True)]
    known = known_of(job.validation, job.space)
    return TrainingInputs(both, together(gathered.evidence, more.evidence, known), truth), gathered


def score_labelled(job: AmalgamationPlan, store: Store, texts: Texts) -> Store:
    """Returns what the teachers say of labelled texts, kept in the corpus's store; made anew if made otherwise."""
    folder = store.folder / "labelled" / text_facts(texts).fingerprint[:16]
    try:
        return score_texts(folder, texts, job.teachers, job.settings)
    except OtherStoreError:
        return score_texts(folder, texts, job.teachers, job.settings, overwrite=True)


def joined(one: Posterior, other: Posterior) -> Posterior:
    """Returns what a teacher said of two sets of texts."""

    def both(a: Any, b: Any) -> Any:
        return None if a is None or b is None else torch.cat([a, b])

    return Posterior(**{name: both(value, getattr(other, name)) for name, value in vars(one).items()})


def known_of(examples: Examples, space: LabelSpace) -> Tensor:
    """Returns per labelled text whether each teacher has its label, [m, t]."""
    aligned = align_labels(
        examples, space.names, kind="sequence_classification", problem_type="single_label_classification"
    )
    labels = torch.tensor([int(label) for label in aligned.labels or ()])
    return torch.stack([space.known(at)[labels] for at in range(len(space.teachers))], 1)


def together(one: Evidence, other: Evidence, known: Tensor) -> Evidence:
    """Returns the evidence of a corpus and of labelled texts behind it."""
    base = None if one.base is None or other.base is None else torch.cat([one.base, other.base])
    near = None if one.near is None or base is None else nearest(base)
    teachers = []
    for first, second in zip(one.teachers, other.teachers, strict=True):
        both = {name: value for name, value in first.items() if name == "drift"}
        if "tokens" in first and "tokens" in second:
            both["tokens"] = torch.cat([first["tokens"], second["tokens"]])
            both["starts"] = torch.cat([first["starts"], second["starts"][1:] + first["starts"][-1]])
        if "response" in first and "response" in second:
            both["response"] = torch.cat([first["response"], second["response"]])
        teachers.append(both)
    return replace(one, base=base, near=near, teachers=tuple(teachers), labelled=known)
