"""Where a student starts: a model, one of its teachers, or their merge; apart because it alone merges."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.parameter_names import skeleton
from plait.errors import RecipeError, SourceError
from plait.merging import plan as planning
from plait.merging.run import write_merge
from plait.recipe import AmalgamateRecipe, MergeRecipe
from plait.teachers.teacher import without_padding
from plait.training.heads import Encoder, check_openable

MERGED = "merged"
"""The student that is the merge of its teachers."""


@dataclass(frozen=True)
class Start:
    """A model to start from: a folder, a Hub id (at a revision), or `merged`.

    Attributes:
        origin: where it comes from.
        revision: of a Hub id.
        encoder: what has been opened of it.
        merge: the plan of the merge.
    """

    origin: str
    revision: str | None = None
    encoder: Encoder | None = None
    merge: planning.Plan | None = None


def start_of(recipe: AmalgamateRecipe, teachers: tuple[Checkpoint, ...]) -> Start:
    """Returns where the student starts: a model, a teacher's model, `merged`, or the base that all teachers record.

    Raises:
        RecipeError: no student is given and the teachers do not record one base.
        MergeError: the merge of the teachers is asked for, and they cannot be merged.
    """
    if recipe.student == MERGED and MERGED not in recipe.sources:
        return Start(MERGED, merge=planning.plan(merge_of(recipe, recipe.output), opened=teachers))
    if recipe.student is not None:
        chosen = recipe.sources.get(recipe.student)
        return Start(recipe.student) if chosen is None else Start(chosen.model, chosen.revision)
    bases = sorted({t.recorded_base or "" for t in teachers})
    if len(bases) != 1 or not bases[0]:
        what = (
            f"record different bases ({', '.join(filter(None, bases))})" if any(bases) else "record no base"
        )
        raise RecipeError(
            f"no student given, and the teachers {what}: give --student MODEL, a teacher's name, or merged"
        )
    return Start(bases[0])


def check_start(start: Start, *, trust_remote_code: bool) -> Start:
    """Returns where the student starts with what has been opened of it; reads no weights.

    Raises:
        SourceError: no student can start there: no model, no head for texts, no padding.
    """
    if start.origin == MERGED:
        return start
    encoder = check_openable(start.origin, start.revision, trust_remote_code)
    if not trust_remote_code:  # such classes need not build without weights
        _check_class(start, encoder)
    return replace(start, encoder=encoder)


def _check_class(start: Start, encoder: Encoder) -> None:
    config = encoder.config
    found: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if found is None:
        raise SourceError(
            f"student {start.origin}: there is no sequence classifier of type {config.model_type}"
        )
    if problem := without_padding(skeleton(found, config, str(encoder.folder))):
        raise SourceError(f"student {start.origin}: {problem}")


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
def starting_point(start: Start) -> Iterator[Start]:
    """Yields the model that the student starts from; the average of the teachers is made for the moment."""
    if start.origin != MERGED:
        yield start
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / MERGED
        assert start.merge is not None
        write_merge(start.merge, place)
        yield Start(str(place))
