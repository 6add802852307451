"""A validated ensemble: models, data, sharing and method opened and checked; no weights are read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.places import check_apart
from plait.checkpoints.writer import check_target
from plait.data import Examples, align_labels, held_back
from plait.data.reading import read
from plait.data.texts import Texts
from plait.encoders.heads import Head
from plait.ensembles.choices import (
    check_noise,
    check_projection,
    choice_of,
    config_of,
    head_of,
    members_of,
    metric_of,
    noise_of,
    open_sources,
    training_data,
    warn_of_averaged,
)
from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.consistency import rate
from plait.ensembles.cost import costs_of, sizes_of
from plait.ensembles.distillation import check_taught, open_start, open_teachers, open_unlabelled, unlabelled
from plait.ensembles.method import ONE_BY_ONE, Build, Choice
from plait.ensembles.objective import PerturbationChoice
from plait.ensembles.perturbation import Place
from plait.errors import DataError, RecipeError, listed
from plait.recipe import EnsembleRecipe
from plait.training.heads import check_labelled
from plait.training.trainer import SEEDS, Schedule

logger = logging.getLogger("plait")


@dataclass(frozen=True)
class EnsemblePlan:
    """A validated ensemble: what it starts from, what its members share, how they are trained and on what."""

    recipe: EnsembleRecipe
    sources: tuple[Checkpoint, ...]
    head: Head
    members: int
    config: EnsembleConfig
    choice: Choice
    noise: PerturbationChoice
    depth: int
    examples: Examples | None = None
    held: Examples | None = None
    given: bool = False
    metric: str | None = None
    teachers: tuple[Checkpoint, ...] = ()
    texts: tuple[Texts, ...] = ()

    @property
    def kind(self) -> str:
        """Returns what the members classify: sequences or tokens."""
        return self.head.kind

    @property
    def problem(self) -> Any:
        """Returns what the logits mean."""
        return self.head.problem_type or "single_label_classification"

    @property
    def alone(self) -> bool:
        """Says whether each model that is trained in the end has one member."""
        return self.choice.alone

    def schedule(self) -> Schedule:
        """Returns how long and how fast."""
        return schedule_of(self.recipe)

    def student_schedule(self) -> Schedule:
        """Returns how long and how fast what is taught learns."""
        return replace(self.schedule(), epochs=self.recipe.student_epochs or self.recipe.epochs)

    def resolved(self) -> EnsembleRecipe:
        """Returns the recipe with what was left to Plait spelled out."""
        choice, noise = self.choice, self.noise
        uses = choice.entry.inputs
        chosen: dict[str, Any] = {
            "members": self.members,
            "perturbation": {"name": noise.name, **noise.options},
            "strength": None,
            "max_length": self.recipe.cut_at,
            "metric": self.metric,
        }
        if choice.build is Build.SHARED and not choice.lone:
            chosen["replicate_at"] = self.depth
        if choice.taught:
            chosen["base"] = None if choice.from_soup and self.teachers else self.sources[0].origin
            chosen["student_epochs"] = None if self.teachers else self.student_schedule().epochs
        if "regulariser" in uses:
            chosen["consistency"] = {"name": choice.consistency, **choice.consistency_options}
        if {"regulariser", "alpha"} & set(uses):
            chosen["alpha"] = choice.alpha
        content = {**self.recipe.model_dump(mode="json", exclude_none=True), **chosen}
        return EnsembleRecipe.model_validate({k: v for k, v in content.items() if v is not None})

    def sizes(self) -> dict[str, int]:
        """Returns how many parameters are saved, how many a prediction depends on, and those of separate models."""
        return sizes_of(self)

    def shared_layers(self) -> int | None:
        """Returns how many layers the members that are written share; None where each is a model of its own."""
        if self.alone:
            return None
        return 0 if self.choice.build is Build.FACTORS else self.config.shared_layers

    def costs(self) -> dict[str, float]:
        """Returns forward passes of one encoder per example: of a training step, of all epochs, of a prediction."""
        return costs_of(self)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as plain data."""
        recipe, choice, sizes = self.recipe, self.choice, self.sizes()
        regularised = "regulariser" in choice.entry.inputs
        return {
            "combine": "ensemble",
            **({"base": self.sources[0].origin} if recipe.base or self.teachers else {}),
            **({"from": list(recipe.sources)} if recipe.sources else {}),
            "method": {"name": choice.name, **choice.options},
            "members": self.members,
            "architecture": self.sources[0].architecture,
            "layers": self.config.num_hidden_layers,
            "shared_layers": self.shared_layers(),
            "head": self.config.head,
            "labels": list(self.head.names or ()),
            "problem_type": self.problem if self.kind == "sequence_classification" else None,
            "perturbation": {"name": self.noise.name, **self.noise.options},
            "replicate_at": self.depth,
            "consistency": {"name": choice.consistency, **choice.consistency_options} if regularised else None,
            "alpha": choice.alpha if {"regulariser", "alpha"} & set(choice.entry.inputs) else None,
            "examples": None if self.examples is None else len(self.examples),
            "validation": None if self.held is None else len(self.held),
            **({"unlabelled": unlabelled(self)} if self.choice.taught else {}),
            "metric": self.metric,
            "parameters": sizes,
            "megabytes": round(sizes["saved"] * 4 / 1e6, 2),
            "forward_equivalents": self.costs(),
            "output": recipe.output,
        }  # fmt: skip


def check_output(recipe: EnsembleRecipe, *, overwrite: bool, beside: bool | None = None) -> None:
    """Raises `OutputError` when the output exists or would replace what the ensemble is made from.

    Args:
        recipe: what will be done.
        overwrite: whether an output that exists is replaced.
        beside: whether members that are kept already are; as the output by default.
    """
    check_target(recipe.output, overwrite=overwrite)
    read = [*recipe.starts, recipe.data, recipe.validation, *(recipe.text or ())]
    check_apart(recipe.output, *read)
    if recipe.keep_members:
        check_target(recipe.beside, overwrite=overwrite if beside is None else beside)
        check_apart(recipe.beside, *read)
    if recipe.store is not None:
        check_apart(recipe.output, recipe.store, kept=True)
        check_apart(recipe.store, *read)


def plan(
    recipe: EnsembleRecipe, data: Any = None, validation: Any = None, texts: Any = None, *, dry: bool = False
) -> EnsemblePlan:
    """Returns the validated plan of an ensemble; reads headers, configs and data, no weights.

    Args:
        recipe: what to do.
        data: labelled data in memory, instead of the recipe's file.
        validation: the same to choose the epoch by.
        texts: texts without labels, instead of the recipe's files.
        dry: whether nothing is to be made by it, so that no model is run.

    Raises:
        RecipeError: an unknown method, perturbation, regulariser or option, or options that contradict each other.
        SourceError: a model that is missing, corrupt, or of no use here.
        MergeError: models that cannot be members of one ensemble.
        DataError: data that is missing, empty, without labels, with labels that a head does not have, or smaller than
            a batch.
    """
    choice = choice_of(recipe, texts=texts is not None)
    if choice.build is Build.SOUP and recipe.sources is not None:  # averaged as they are
        recipe = recipe.model_copy(update={"epochs": 0.0})
    noise = noise_of(recipe)
    check_schedule(recipe, choice)
    labelled = [recipe.validation if validation is None else validation, recipe.data if data is None else data]
    teachers: tuple[Checkpoint, ...] = ()
    if choice.taught and recipe.sources is not None:
        teachers = open_teachers(recipe, labelled, dry=dry)
        first = teachers[0] if choice.from_soup else open_start(recipe, teachers)
        sources: tuple[Checkpoint, ...] = (first,)
    else:
        sources = open_sources(recipe, labelled, dry=dry)
    opened = open_unlabelled(recipe, texts)
    examples = None if teachers and recipe.data is data is None else training_data(recipe, data)
    head = head_of(recipe, teachers or sources, examples)
    members = members_of(recipe, choice)
    config = config_of(recipe, sources[0], head, 1 if choice.alone else members)
    rate(choice.consistency, choice.alpha, members)
    check_projection(recipe, config, head.kind, plain=choice.plain)
    if not choice.plain:
        warn_of_averaged(recipe, sources, config)
    check_noise(noise, choice, config, head.kind, untrained=recipe.epochs == 0)
    depth = depth_of(noise, choice, config)
    given = recipe.validation if validation is None else validation
    rows, held = divided(recipe, examples, given, head)
    warn_of_unseen(rows, head)
    metric = metric_of(recipe, head, held)
    found = EnsemblePlan(
        recipe, sources, head, members, config, choice, noise, depth, rows, held, given is not None, metric,
        teachers, opened,
    )  # fmt: skip
    if choice.taught:
        check_taught(recipe, found)
    check_greedy(found)
    return found


def check_greedy(job: EnsemblePlan) -> None:
    """Raises `RecipeError` where a greedy soup has no rows to choose by."""
    if job.choice.entry.facts.get("greedy") and job.held is None:
        raise RecipeError(
            f"method {job.choice.name} tries the models on rows that are held back; found none: give validation data"
        )


def schedule_of(recipe: EnsembleRecipe) -> Schedule:
    """Returns how long and how fast."""
    return Schedule(
        recipe.epochs, recipe.learning_rate, recipe.batch_size, recipe.warmup, recipe.weight_decay,
        seed=recipe.seed, precision=recipe.precision, report_to=recipe.report_to, accumulate=recipe.accumulate,
    )  # fmt: skip


def check_schedule(recipe: EnsembleRecipe, choice: Choice) -> None:
    """Raises `RecipeError` where a batch cannot be divided, or members lack seeds of their own."""
    schedule_of(recipe).part  # noqa: B018 (a batch that cannot be divided is said before anything is loaded)
    last = recipe.seed + members_of(recipe, choice) - 1
    if (choice.alone or choice.build in ONE_BY_ONE) and last > SEEDS:
        raise RecipeError(
            f"seed is {recipe.seed}, that of the last model {last}; expected at most {SEEDS}: give a smaller one"
        )


def depth_of(noise: PerturbationChoice, choice: Choice, config: EnsembleConfig) -> int:
    """Returns the layer from which on members have rows of their own; one member takes one plain pass."""
    plain = noise.place in (Place.NONE, Place.DROPOUT) and (choice.alone or choice.taught)
    return 0 if plain or choice.build is Build.FACTORS else noise.depth(config.shared_layers)


def divided(
    recipe: EnsembleRecipe, examples: Examples | None, validation: Any, head: Head
) -> tuple[Examples | None, Examples | None]:
    """Returns what to train on and what to judge on, labels as the head counts them."""
    told: Mapping[str, Any] = {"kind": head.kind, "problem_type": head.problem_type}
    held = None if validation is None else _labelled(validation, "validate")
    held = None if held is None else align_labels(held, head.names, **told)
    if examples is None:
        return None, held
    check_labelled(examples, "train")
    rows = align_labels(examples, head.names, **told)
    if not recipe.epochs:  # nothing is trained: all of it can judge
        return None, rows if held is None else held
    if held is None:
        kept, back = held_back(len(rows), recipe.held_back, recipe.seed)
        held = rows.select(back.tolist()) if len(back) else None
        rows = rows.select(kept.tolist())
    if len(rows) < recipe.batch_size:
        raise DataError(
            f"{examples.source}: {len(rows)} examples to train on, less than a batch of {recipe.batch_size}; "
            "give more, or a smaller --batch-size"
        )
    return rows, held


def warn_of_unseen(rows: Examples | None, head: Head) -> None:
    """Warns of labels that no example teaches, such as one that a data set declares for its test data alone."""
    if rows is None or head.names is None:
        return
    several = head.problem_type == "multi_label_classification"
    found = [row if isinstance(row, tuple) else (row,) for row in rows.labels or ()]
    seen = {at for row in found for at, value in enumerate(row) if value} if several else set(chain(*found))
    if unseen := [name for at, name in enumerate(head.names) if at not in seen]:
        logger.warning("%s: no example to train on for label %s", rows.source, listed(unseen, 5))


def _labelled(data: Any, purpose: str) -> Examples:
    found = read(data)
    check_labelled(found, purpose)
    return found
