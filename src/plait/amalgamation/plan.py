"""A validated amalgamation: teachers, texts, labels and student opened and checked; nothing is computed yet."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

from plait.amalgamation.choices import SCORING, Choices, choices_of, for_space, rounds_of, settings_of
from plait.amalgamation.gate_inputs import Bases, bases_of, check_bases, expected_passes
from plait.amalgamation.initialization import Start, check_start, start_of
from plait.amalgamation.label_space import LabelSpace, union
from plait.amalgamation.texts import labelled, open_corpus, store_record
from plait.checkpoints.checkpoint import Checkpoint, Wanted, open_models
from plait.checkpoints.places import check_apart
from plait.checkpoints.tokenizers import misfit
from plait.checkpoints.writer import check_target
from plait.data import Examples
from plait.data.texts import Texts
from plait.data.writing import check_table
from plait.errors import RecipeError, SourceError, listed
from plait.recipe import AmalgamateRecipe, NamedOptions
from plait.teachers import Settings
from plait.teachers.record import Record, check_same
from plait.teachers.scoring import text_facts
from plait.teachers.teacher import check_mc_dropout, check_teachers, label_layers, teacher_of
from plait.training.trainer import check_tracker

logger = logging.getLogger("plait")

FEW_TEXTS = 200
"""Texts below which a covariance of features is a poor estimate."""


@dataclass(frozen=True)
class AmalgamationPlan:
    """A validated amalgamation: who will teach whom what, and how."""

    recipe: AmalgamateRecipe
    choices: Choices
    teachers: tuple[Checkpoint, ...]
    space: LabelSpace
    texts: Texts
    settings: Settings
    start: Start
    skipped: int
    validation: Examples | None = None
    bases: Bases = field(default_factory=lambda: Bases(None, ()))
    rounds: int = 0
    known: Record | None = None

    def resolved(self) -> AmalgamateRecipe:
        """Returns the recipe with what was left to Plait spelled out."""
        chosen: dict[str, Any] = {}
        if self.choices.gated:
            given = dict(self.choices.gate_options)
            if not self.choices.joint:
                options = self.choices.gate_entries[0].options.values()
                given = {option.name: option.default for option in options} | given
            chosen["rounds"] = self.rounds
            chosen["base"] = None if self.bases.base is None else self.bases.base.origin
            chosen |= {name: getattr(self.choices, name) for name in ("target", "margin", "agreement")}
            chosen["gate"] = NamedOptions.model_validate({"name": self.choices.gate, **given})
            chosen["temperature"] = self.choices.softness if self.choices.target != "hard" else None
        scoring = {name: getattr(self.settings, name) for name in SCORING}
        return self.recipe.model_copy(update={**chosen, **scoring, "student": self.start.origin})

    def describe(self) -> dict[str, Any]:
        """Returns the plan as plain data."""
        passes = self.settings.passes
        return {
            "combine": "amalgamate",
            "teachers": {
                t.name: {"model": t.origin, "architecture": t.architecture, "labels": list(t.labels or ())}
                for t in self.teachers
            },
            "labels": list(self.space.names),
            "student": self.start.origin,
            "texts": self.texts.count(),
            "texts_skipped": self.skipped,
            **({"gate": self.choices.gate, "target": self.choices.target} if self.choices.gated else {}),
            **({"base": self.bases.base.origin} if self.bases.base is not None and self.choices.gated else {}),
            "rounds": self.rounds,
            "objective": self.choices.objective,
            "passes": passes,
            "forward_equivalents": self.forward_equivalents(),
            "store": str(self.recipe.store_folder()),
            "store_megabytes": round(self.store_bytes() / 1e6, 2),
            "output": self.recipe.output,
        }

    def forward_equivalents(self) -> dict[str, float]:
        """Returns the forward passes that each text will cost at most: a backward pass counts as two."""
        one = [1 + self.settings.passes * self._replayed(t) for t in self.teachers]
        held = self.recipe.held_back if self.validation is None else 0.0
        each = self.recipe.epochs * (3 * (1 - held) + held)
        student = (self.rounds + 1) * each + self.rounds
        evidence = expected_passes(self.choices, self.bases, len(self.teachers))
        return {
            "teachers": round(sum(one), 2),
            "base": evidence,
            "student": round(student, 2),
            "total": round(sum(one) + evidence + student, 2),
        }

    def _replayed(self, teacher: Checkpoint) -> float:
        """Returns the share of a teacher's layers that every pass runs."""
        layers = self.settings.last_layers
        return 1.0 if layers is None else min(1.0, layers / teacher.config.num_hidden_layers)

    def store_bytes(self) -> int:
        """Returns about how large the store will be."""
        a_text = sum(8 * len(t.labels or ()) + 12 + self._kept(t) for t in self.teachers)
        return self.texts.count() * (16 + a_text)

    def _kept(self, teacher: Checkpoint) -> int:
        width = int(teacher.config.hidden_size)
        layers = int(teacher.config.num_hidden_layers) + 1
        return {"none": 0, "features": 2 * width, "layers": 2 * width * (1 + layers)}[self.settings.keep]


def check_output(recipe: AmalgamateRecipe, *, overwrite: bool) -> None:
    """Raises `OutputError` when the output exists, or it and what is read or kept beside it lie in one another."""
    check_target(recipe.output, overwrite=overwrite)
    models = [t.model for t in recipe.sources.values()]
    read = [*models, recipe.student, recipe.base, recipe.text, recipe.validation]
    check_apart(recipe.output, *read)
    check_apart(recipe.store_folder(), *read)
    check_apart(recipe.output, recipe.store_folder(), kept=True)
    if recipe.routing is not None:
        check_table(recipe.routing, "--routing", overwrite=overwrite)
        check_apart(recipe.routing, *read)
        check_apart(recipe.routing, recipe.output, recipe.store_folder(), kept=True)


def plan(recipe: AmalgamateRecipe, texts: Any = None, validation: Any = None) -> AmalgamationPlan:
    """Returns the validated plan of an amalgamation; reads headers, configs, tokenizers and texts, no weights.

    Args:
        recipe: what to do.
        texts: in memory, instead of the recipe's file.
        validation: labelled data in memory, instead of the recipe's file.

    Raises:
        RecipeError: an unknown gate, objective, option, or renamed label.
        SourceError: a teacher that is missing, corrupt, or no classifier of single labels.
        DataError: no texts, or validation labels that no teacher has.
    """
    choices = choices_of(recipe)
    check_tracker(recipe.report_to)
    teachers = open_teachers(recipe)
    space = union({t.name: t.labels or () for t in teachers}, recipe.rename)
    choices = for_space(choices, recipe, space)
    start = start_of(recipe, teachers)
    start = check_start(start, trust_remote_code=recipe.trust_remote_code)
    known = store_record(recipe)
    opened, skipped = open_corpus(recipe, texts, known)
    held = recipe.validation if validation is None else validation
    judged = None if held is None else labelled(held, space)
    if judged is None and choices.gate == "fitted":
        raise RecipeError("gate fitted learns from labelled texts: give --validation FILE, or --gate auto")
    settings = settings_of(recipe, choices, opened, known)
    if choices.joint and settings.keep == "features" and any(label_layers(t) != 1 for t in teachers):
        # One of several gates needs what the head reads; the others do without.
        settings = replace(settings, keep="none")
    check_mc_dropout(teachers, settings)
    bases = bases_of(recipe, teachers, start) if choices.gated else Bases(None, ())
    check_bases(choices, bases)
    found = AmalgamationPlan(
        recipe, choices, teachers, space, opened, settings, start, skipped, judged, bases, rounds_of(recipe, choices),
        known,
    )
    check_gold(found)
    check_store(found)
    warn_of_few_texts(found)
    return found


def check_gold(job: AmalgamationPlan) -> None:
    """Raises `RecipeError` where the gate looks at the texts' own labels and they have none."""
    if any("labels" in entry.inputs for entry in job.choices.gate_entries) and next(job.texts.chunks()).labels is None:
        raise RecipeError(
            f"gate {job.choices.gate} looks at the texts' own labels: name their column with --label-column "
            "(in Python label=)"
        )


def warn_of_few_texts(job: AmalgamationPlan) -> None:
    """Says so where the gate learns from the texts how features vary, and there are too few for that."""
    estimating = any({"features", "base"} & set(entry.inputs) for entry in job.choices.gate_entries)
    if job.choices.gated and estimating and job.texts.count() < FEW_TEXTS:
        logger.warning(
            "gate %s estimates a covariance from %d texts, and wants some hundreds: with so few, gate energy or muka "
            "may choose better",
            *(job.choices.gate, job.texts.count()),
        )


def check_store(job: AmalgamationPlan) -> None:
    """Raises `DataError` where a store that was named is of other texts, teachers or settings."""
    folder = job.recipe.store_folder()
    if job.recipe.store is not None and job.known is not None:
        wanted = tuple(teacher_of(t) for t in job.teachers)
        check_same(folder, job.known, text_facts(job.texts), wanted, job.settings)


def open_teachers(recipe: AmalgamateRecipe) -> tuple[Checkpoint, ...]:
    """Returns the opened teachers, in order.

    Raises:
        SourceError: one that is missing, corrupt, or not a classifier of single labels, all of which are named; or
            one without a tokenizer.
    """
    wanted = [Wanted(t.model, name, t.revision, t.labels) for name, t in recipe.sources.items()]
    found = open_models(wanted, trust_remote_code=recipe.trust_remote_code)
    check_teachers(found)
    # What is wrong with a tokenizer is said before the first teacher has scored everything.
    fits = {teacher.name: misfit(teacher.tokenizer(), teacher.config) for teacher in found}
    if problems := [f"the tokenizer of {name} {problem}" for name, problem in fits.items() if problem]:
        raise SourceError(listed(problems))
    return found
