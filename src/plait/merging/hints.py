"""Hints at what a merge could have had; apart so that all of them are read together."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from plait.checkpoints.checkpoint import Checkpoint
from plait.errors import RecipeError
from plait.recipe import MergeRecipe

logger = logging.getLogger("plait")
TEXTS_SERVE = "texts without labels are enough for regmean, fitted heads and refinement"
WITH_BASE = "with a base (--base MODEL) actmerge, ties and task_arithmetic need no data"


def without_data(rule: str, labelled: bool) -> str:
    """Returns what can be had where data is missing: the end of an error."""
    unlabelled = "--method regmean takes texts without labels, " if labelled else "texts without labels are enough, "
    return f"{unlabelled}{WITH_BASE}" if rule != "average" else WITH_BASE


def check_some(recipe: MergeRecipe, data: Mapping[str, Any]) -> None:
    """Refuses data of some sources alone where the method is open, and says what more data would give.

    Raises:
        RecipeError: it would be left unused, and nobody would know.
    """
    if not recipe.open or (recipe.method is not None and recipe.method.options):
        return
    given = [name for name, source in recipe.sources.items() if source.data or source.statistics or name in data]
    bare = [name for name in recipe.sources if name not in given]
    if given and bare:
        raise RecipeError(
            f"data of {', '.join(given)} alone is of no use to a merge, {', '.join(bare)} has none: give "
            f"--data {bare[0]}=FILE ({TEXTS_SERVE}), or leave --data out"
        )
    if bare and len(recipe.sources) > 1:
        logger.info("no data is given: with --data NAME=FILE of every source the merge fits better (%s)", TEXTS_SERVE)


def hint_at_tasks(sources: Sequence[Checkpoint], tasks: Mapping[str, str]) -> None:
    """Says so where sources that are tasks of their own have the same labels: they may be one task."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for source in sources:
        labels = tuple(sorted(source.labels or ()))
        # Names that were never given, such as LABEL_0, say nothing.
        if len(labels) > 1 and not all(re.fullmatch(r"LABEL_\d+", label) for label in labels):
            groups.setdefault((source.architecture, labels), []).append(source.name)
    for (_, labels), names in groups.items():
        if len({tasks[name] for name in names}) > 1:
            logger.info(
                "%s have the same labels (%s) and keep a head each; if they are one task: --task %s=NAME",
                " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))),
                ", ".join(labels[:5]) + (", …" if len(labels) > 5 else ""),
                ",".join(names),
            )
