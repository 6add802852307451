"""Where a student starts: a model, one of its teachers, or their average."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plait.api import planning
from plait.api.merging import run_merge
from plait.checkpoints.source import Checkpoint
from plait.errors import RecipeError
from plait.recipe import AmalgamateRecipe, MergeRecipe

MERGED = "merged"
"""The student that is the merge of its teachers."""


def student_of(recipe: AmalgamateRecipe, teachers: tuple[Checkpoint, ...]) -> str:
    """Returns where the student starts: a model, a teacher's model, `merged`, or the base that all teachers record.

    Raises:
        RecipeError: no student is given and the teachers do not record one base.
        MergeError: the merge of the teachers is asked for, and they cannot be merged.
    """
    if recipe.student == MERGED and MERGED not in recipe.sources:
        planning.plan(merge_of(recipe, recipe.output))
        return MERGED
    if recipe.student is not None:
        chosen = recipe.sources.get(recipe.student)
        return recipe.student if chosen is None else chosen.model
    bases = sorted({t.recorded_base or "" for t in teachers})
    if len(bases) != 1 or not bases[0]:
        what = (
            f"record different bases ({', '.join(filter(None, bases))})" if any(bases) else "record no base"
        )
        raise RecipeError(
            f"no student given, and the teachers {what}: give --student MODEL, a teacher's name, or merged"
        )
    return bases[0]


def merge_of(recipe: AmalgamateRecipe, output: str | Path) -> MergeRecipe:
    """Returns the recipe of the teachers' average, from which a student may start."""
    sources: Mapping[str, Any] = {
        name: {"model": t.model, "revision": t.revision} for name, t in recipe.sources.items()
    }
    return MergeRecipe.model_validate({
        "sources": sources, "method": "average", "output": str(output),
        "trust_remote_code": recipe.trust_remote_code,
    })  # fmt: skip


@contextmanager
def starting_point(recipe: AmalgamateRecipe, student: str) -> Iterator[str]:
    """Yields the model that the student starts from; the average of the teachers is made for the moment."""
    if student != MERGED:
        yield student
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / MERGED
        run_merge(merge_of(recipe, place))
        yield str(place)
