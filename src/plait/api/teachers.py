"""The first stage of an amalgamation: teachers, texts, labels and student, opened and checked; nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.amalgamation.labels import LabelSpace, union
from plait.amalgamation.lesson import Choices
from plait.amalgamation.objective import OBJECTIVES
from plait.api.inputs import read
from plait.api.merging import describe_sources, is_file
from plait.api.starting import student_of
from plait.checkpoints.source import Checkpoint, open_checkpoint
from plait.checkpoints.writer import check_target
from plait.data import Examples, align_labels, open_texts
from plait.data.streaming import Texts
from plait.errors import DataError, OutputError, RecipeError, listed
from plait.merging.manifest import is_merged
from plait.recipe import AmalgamateRecipe, DataSpec, parse_as
from plait.statistics.posteriors import Settings, open_store
from plait.statistics.posteriors.teacher import check_teachers

PASSES = 16
"""Monte Carlo passes where a gate needs them and the recipe names none, as in the paper."""
DEFAULTS: Mapping[str, Any] = {"gate": "muka", "target": "hard", "margin": True}
"""What decides where the recipe does not say; the reasons are in docs/amalgamation.md."""
CONCATENATED: Mapping[str, Any] = {"gate": "energy", "temperature": 1.0, "target": "soft", "margin": False}
"""What softmax(concat z) is (methods of the VKD family): for reports and agreement where an objective has no gate."""


@dataclass(frozen=True)
class AmalgamationPlan:
    """A validated amalgamation: who will teach whom what, and how."""

    recipe: AmalgamateRecipe
    choices: Choices
    teachers: tuple[Checkpoint, ...]
    space: LabelSpace
    texts: Texts
    settings: Settings
    student: str
    validation: Examples | None = None

    def resolved(self) -> AmalgamateRecipe:
        """Returns the recipe with what was left to Plait spelled out."""
        chosen = {name: getattr(self.choices, name) for name in ("gate", "target", "margin", "temperature")}
        if "target" not in self.choices.objective_entry.inputs:
            chosen = {}
        return self.recipe.model_copy(
            update={**chosen, "student": self.student, "passes": self.settings.passes}
        )

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
            "student": self.student,
            "texts": self.texts.count(),
            "texts_skipped": self.texts.skipped,
            "gate": self.choices.gate,
            "target": self.choices.target,
            "objective": self.choices.objective,
            "passes": passes,
            "forward_equivalents": self.forward_equivalents(),
            "store": str(self.recipe.store_folder()),
            "store_megabytes": round(self.store_bytes() / 1e6, 2),
            "output": self.recipe.output,
        }

    def forward_equivalents(self) -> dict[str, float]:
        """Returns the forward passes that each text will cost: a backward pass counts as two."""
        one = [1 + self.settings.passes * self._replayed(t) for t in self.teachers]
        held = self.recipe.held_back
        student = self.recipe.epochs * (3 * (1 - held) + held)
        return {
            "teachers": round(sum(one), 2),
            "student": round(student, 2),
            "total": round(sum(one) + student, 2),
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
    """Raises `OutputError` when the output exists or would replace what the amalgamation reads."""
    check_target(recipe.output, overwrite=overwrite)
    target = Path(recipe.output).resolve()
    read_from = [*(t.model for t in recipe.sources.values()), recipe.student, recipe.store]
    read_from += [data.path for data in (recipe.text, recipe.validation) if data is not None]
    for place in filter(None, read_from):
        found = Path(place).expanduser()
        if found.exists() and (
            target in {found.resolve(), *found.resolve().parents}
            or (found.is_dir() and found.resolve() in target.parents)
        ):
            raise OutputError(
                f"output {recipe.output} and {place}, which is read, overlap: choose another output"
            )


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
    teachers = open_teachers(recipe)
    space = union({t.name: t.labels or () for t in teachers}, recipe.rename)
    student = student_of(recipe, teachers)
    opened = open_corpus(recipe, texts)
    held = recipe.validation if validation is None else validation
    judged = None if held is None else labelled(held, space)
    return AmalgamationPlan(
        recipe, choices, teachers, space, opened, settings_of(recipe, choices), student, judged
    )


def choices_of(recipe: AmalgamateRecipe) -> Choices:
    """Returns how posteriors become targets, after checking every name and option.

    Raises:
        RecipeError: an unknown gate, objective or option (did you mean), or an oracle without labels.
    """
    gated = "target" in OBJECTIVES[recipe.objective.name].inputs
    deciding = {
        "gate": recipe.gate,
        "temperature": recipe.temperature,
        "target": recipe.target,
        "margin": recipe.margin,
    }
    given = {name: value for name, value in deciding.items() if value is not None}
    if given and not gated:
        raise RecipeError(
            f"objective {recipe.objective.name} has no gate: it weighs the teachers' logits itself, so it cannot take "
            f"{', '.join(given)}; leave {'it' if len(given) == 1 else 'them'} out, or choose objective muka"
        )
    choices = Choices(
        **{**(DEFAULTS if gated else CONCATENATED), **given},
        posterior=recipe.posterior,
        calibrate=recipe.calibrate,
        objective=recipe.objective.name,
        options=recipe.objective.options,
    )
    choices.objective_entry.check(choices.options)
    if "labels" in choices.gate_entry.inputs and recipe.text is not None and recipe.text.label is None:
        raise RecipeError(
            f"gate {choices.gate} looks at the texts' own labels: name their column with --label-column"
        )
    if recipe.passes == 0 and choices.needs_passes:
        raise RecipeError(
            f"gate {choices.gate}, posterior {choices.posterior} and calibrate {choices.calibrate} together need "
            "Monte Carlo passes: give --passes 16, or a gate that needs none (energy, entropy, max_logit)"
        )
    return choices


def open_teachers(recipe: AmalgamateRecipe) -> tuple[Checkpoint, ...]:
    """Returns the opened teachers, in order.

    Raises:
        SourceError: one that is missing, corrupt, or not a classifier of single labels; all are named.
    """
    found = tuple(
        open_checkpoint(t.model, name=name, revision=t.revision, trust_remote_code=recipe.trust_remote_code)
        for name, t in recipe.sources.items()
    )
    merged = [f"{t.name} ({t.origin})" for t in found if is_merged(t.folder)]
    if merged:
        raise RecipeError(
            f"{listed(merged)}: a merged checkpoint has several heads; plait export one task of it first"
        )
    check_teachers(found)
    return found


def settings_of(recipe: AmalgamateRecipe, choices: Choices) -> Settings:
    """Returns how teachers score texts; passes that a store already holds are used where the recipe names none."""
    passes = recipe.passes
    if passes is None:
        passes = PASSES if choices.needs_passes else 0
        folder = recipe.store_folder()
        if (folder / "store.json").is_file():
            found = open_store(folder).settings.passes
            passes = found if found or not choices.needs_passes else passes
    return Settings(
        passes=passes, seed=recipe.seed, last_layers=recipe.last_layers, dropout=recipe.dropout,
        keep=choices.keep, max_length=recipe.max_length, stop=recipe.stop,
    )  # fmt: skip


def open_corpus(recipe: AmalgamateRecipe, texts: Any) -> Texts:
    """Returns the texts, or a random subset of them.

    Raises:
        DataError: none are given, or there is none among them.
    """
    given = recipe.text if texts is None else texts
    if given is None:
        raise DataError("no texts given: an amalgamation needs --text FILE, unlabelled texts to teach on")
    told = {"path": given.path, **given.columns()} if isinstance(given, DataSpec) else given
    if recipe.limit is None:
        return open_texts(told)
    kept = [chunk for chunk in open_texts(told).chunks(1 << 20)]  # noqa: C416 - an iterator is read once
    whole = Examples(
        tuple(t for c in kept for t in c.texts),
        None if kept[0].pairs is None else tuple(p for c in kept for p in c.pairs or ()),
        None if kept[0].labels is None else tuple(v for c in kept for v in c.labels or ()),
        kept[0].label_names,
        source=kept[0].source,
    )
    subset = whole.sample(recipe.limit, recipe.seed)
    return open_texts(subset, label="label" if subset.labels is not None else None)


def labelled(data: Any, space: LabelSpace) -> Examples:
    """Returns validation data whose labels the student will have."""
    found = read(data)
    if found.labels is None:
        raise DataError(f"{found.source}: has no labels, which validation needs")
    align_labels(
        found, space.names, kind="sequence_classification", problem_type="single_label_classification"
    )
    return found


def amalgamation_recipe(
    teachers: Mapping[str, Any],
    *,
    out: str | Path,
    texts: Any,
    student: str | Path | None,
    validation: Any,
    options: Mapping[str, Any],
) -> AmalgamateRecipe:
    """Returns the recipe that these arguments of `amalgamate` spell; data in memory stays outside."""
    content = {
        "sources": describe_sources(teachers),
        "text": texts if is_file(texts) else None,
        "validation": validation if is_file(validation) else None,
        "student": None if student is None else str(student),
        "output": str(out),
        **options,
    }
    return parse_as(AmalgamateRecipe, content, "amalgamate")
