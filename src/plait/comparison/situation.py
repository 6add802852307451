"""In which ways given sources can be combined, and for the others why not: from headers, labels and records alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from plait.checkpoints.checkpoint import Checkpoint
from plait.comparison.material import Material
from plait.ensembles.plan import plan as plan_ensemble
from plait.errors import MergeError, PlaitError, first_line, listed
from plait.merging.defaults import usable_base
from plait.merging.plan import Plan
from plait.merging.plan import plan as plan_merge
from plait.recipe import CompareRecipe, DataSpec, EnsembleRecipe, MergeRecipe
from plait.teachers.teacher import check_teachers

logger = logging.getLogger("plait")


@dataclass(frozen=True)
class Way:
    """One way of combining the sources, and why it is possible or not, in one line."""

    name: str
    possible: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {"way": self.name, "possible": self.possible, "reason": self.reason}


@dataclass(frozen=True)
class Situation:
    """Sources, rows, and what can be done with them.

    Attributes:
        recipe: of the comparison.
        material: sources and rows.
        base: that the sources were fine-tuned from, where it is here.
        merge: the plan of their average; None where they cannot be merged.
        ways: all, possible or not.
    """

    recipe: CompareRecipe
    material: Material
    base: Checkpoint | None
    merge: Plan | None
    ways: tuple[Way, ...]

    def can(self, way: str) -> bool:
        """Says whether a way is possible."""
        return any(found.possible for found in self.ways if found.name == way)

    @property
    def folder(self) -> Path:
        """Returns where the comparison lies."""
        return Path(self.recipe.output)

    @property
    def starts_at(self) -> str | None:
        """Returns the model that students start from by default: the base as it is named, if there is one."""
        if self.recipe.base is not None:
            return self.recipe.base
        if self.base is not None:
            return self.base.origin
        recorded = {source.recorded_base for source in self.material.sources}
        return recorded.pop() if len(recorded) == 1 else None

    @cached_property
    def files(self) -> dict[str, DataSpec]:
        """Returns where a recipe finds the data of each source: its own file, or what was cut or held in memory."""
        return {
            name: spec if name in self.material.whole and spec is not None else self.written(name)
            for name, spec in ((n, self.recipe.sources[n].data) for n in self.material.data)
        }

    @property
    def texts(self) -> DataSpec:
        """Returns where a recipe finds the texts that students learn from."""
        own = self.recipe.text
        return own if own is not None and self.material.told else self.written("texts")

    def written(self, name: str) -> DataSpec:
        """Returns where rows are written that no file holds."""
        return DataSpec(path=str(self.folder / "data" / f"{name}.jsonl"))

    def merging(self, *, data: bool = False, **changes: Any) -> MergeRecipe:
        """Returns the recipe of a merge of the sources, with their data where it uses them."""
        told, tasks = self.recipe, self.material.task_of
        sources: dict[str, dict[str, Any]] = {
            name: {**spec.model_dump(exclude_none=True, exclude={"data"}), "task": tasks(name)}
            for name, spec in told.sources.items()
        }
        for name in self.files if data else ():
            sources[name]["data"] = self.files[name].model_dump(exclude_none=True)
        content = {"sources": sources, "output": str(self.folder), "base": told.base, **changes}
        return MergeRecipe.model_validate({"trust_remote_code": told.trust_remote_code, **content})


def situation_of(recipe: CompareRecipe, material: Material) -> Situation:
    """Returns what can be done with sources, by asking the planners of each way."""
    bare = Situation(recipe, material, None, None, ())
    with quiet():
        merge, merging = mergeable(bare)
        base = usable_base(bare.merging(), material.sources) if merge is not None else base_alone(bare)
        ways = [merging, soup(material, merge), ensemble(recipe, material), students(material, merge)]
    return Situation(recipe, material, base, merge, tuple(ways))


def base_alone(bare: Situation) -> Checkpoint | None:
    """Returns the base that a recipe names, where the sources cannot be merged."""
    if bare.recipe.base is None:
        return None
    return usable_base(bare.merging(), bare.material.sources)


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out notes of the planners: their hints are for those who merge by hand."""
    level = logger.level
    logger.setLevel(max(logging.WARNING, logger.getEffectiveLevel()))
    try:
        yield
    finally:
        logger.setLevel(level)


def mergeable(bare: Situation) -> tuple[Plan | None, Way]:
    """Returns the plan of the sources' average, and what that says of merging."""
    try:
        found = plan_merge(bare.merging(method="average"), opened=bare.material.sources)
    except PlaitError as error:
        return None, Way("merge", False, first_line(error))
    heads = "one head, of the same labels" if bare.material.alike else f"{len(found.alignment.tasks)} heads"
    return found, Way("merge", True, f"one encoder ({found.alignment.family}) with {heads}")


def soup(material: Material, merge: Plan | None) -> Way:
    """Returns whether the sources can become one model by averaging heads too."""
    if not material.alike:
        return Way("soup", False, "the sources have different labels, so each keeps a head of its own")
    if merge is None:
        return Way("soup", False, "the encoders cannot be merged")
    return Way("soup", True, "the same labels: encoders and heads become one ordinary model")


def ensemble(recipe: CompareRecipe, material: Material) -> Way:
    """Returns whether the sources can be members of one ensemble."""
    if not material.alike:
        return Way("ensemble", False, "members answer one task, and the sources have different labels")
    try:
        plan_ensemble(as_they_are(recipe))
    except PlaitError as error:
        return Way("ensemble", False, first_line(error))
    return Way("ensemble", True, "the same labels: the sources answer together, which is the ceiling and its price")


def as_they_are(recipe: CompareRecipe, **changes: Any) -> EnsembleRecipe:
    """Returns the recipe of an ensemble of the sources: as they are, with nothing shared, unless changes say else."""
    content: Mapping[str, Any] = {
        "sources": [source.model for source in recipe.sources.values()], "epochs": 0, "output": recipe.output,
        "trust_remote_code": recipe.trust_remote_code, "seed": recipe.seed,
    }  # fmt: skip
    apart = {} if "method" in changes else {"method": "shared", "shared_layers": 0}
    return EnsembleRecipe.model_validate({**content, **apart, **changes})


def students(material: Material, merge: Plan | None) -> Way:
    """Returns whether the sources can teach one student all labels."""
    if material.alike:
        return Way("amalgamate", False, "the sources have the same labels: see ensembles, one of which teaches a model")
    if material.space is None:
        return Way("amalgamate", False, "teachers must be classifiers of texts with one label each")
    try:
        check_teachers(material.sources)
    except PlaitError as error:
        return Way("amalgamate", False, first_line(error))
    if material.texts is None:
        return Way("amalgamate", False, "there are no texts to teach on (--text FILE)")
    alone = "" if merge is not None else "; the only way for different tokenizers or architectures"
    return Way("amalgamate", True, f"one student for {len(material.space)} labels{alone}")


def check_possible(situation: Situation) -> None:
    """Raises `MergeError` where the sources cannot be combined in any way that was asked for; says why for each."""
    asked = situation.recipe.only or ("merge", "ensemble", "amalgamate")
    found = [way for way in situation.ways if way.name in asked]
    if not any(way.possible for way in found):
        reasons = listed(f"{way.name}: {way.reason}" for way in found)
        raise MergeError(f"{', '.join(situation.material.names)} cannot be combined: {reasons}")
