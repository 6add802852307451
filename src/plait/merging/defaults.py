"""Method and refinement of a merge whose recipe leaves them open; apart, as docs/merging.md argues each default.

Apart from plan.py so that whoever changes a default finds one small file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint
from plait.checkpoints.compatibility import Rows, align, group_tasks
from plait.checkpoints.processors import reads_images
from plait.checkpoints.vocabulary import fitted
from plait.errors import PlaitError, RecipeError
from plait.evaluation.head_order import orders_on_data
from plait.merging.rule import RULES
from plait.recipe import MergeRecipe, MethodSpec
from plait.statistics.importance import Statistics

logger = logging.getLogger("plait")

PASSES = 3
"""Passes of refinement where every source has texts; it stops by itself when one does not help."""


def refine_of(recipe: MergeRecipe, data: Mapping[str, Any], headed: bool = True) -> int:
    """Returns the passes of refinement: as the recipe says, else `PASSES` where the method is open and texts exist.

    None where sources are language models, not `headed` by tasks: it is measured for heads alone.
    """
    if recipe.refine is not None:
        return recipe.refine
    if not (headed and recipe.open and has_texts(recipe, data)):
        return 0
    if find_spec("accelerate") is None:
        logger.warning("accelerate is not installed: the merge is not refined (pip install accelerate)")
        return 0
    return PASSES


def align_of(
    recipe: MergeRecipe, data: Mapping[str, Any], headed: bool = True
) -> Literal["none", "shift", "ridge"]:
    """Returns how heads are fitted: as the recipe says, else by `ridge` where the method is open and texts exist."""
    if recipe.align_heads is not None:
        return recipe.align_heads
    return "ridge" if headed and recipe.open and has_texts(recipe, data) else "none"


def refinement_of(
    recipe: MergeRecipe, data: Mapping[str, Any], sources: Sequence[Checkpoint] | None
) -> dict[str, Any]:
    """Returns how a merge is refined and its heads are fitted, by the names of the recipe.

    Raises:
        RecipeError: the recipe asks for either of image models, which read no texts.
    """
    if sources is None or not any(reads_images(source.model_class) for source in sources):
        texts = sources is None or not all(source.objective for source in sources)
        return {"refine": refine_of(recipe, data, texts), "align_heads": align_of(recipe, data, texts)}
    if recipe.refine or recipe.align_heads not in (None, "none"):
        raise RecipeError("--refine and --align-heads read texts, these models read images: leave them out")
    return {"refine": 0, "align_heads": "none"}


def has_texts(recipe: MergeRecipe, data: Mapping[str, Any]) -> bool:
    """Returns whether every source brings texts."""
    return all(source.data or name in data for name, source in recipe.sources.items())


def method_of(
    recipe: MergeRecipe, data: Mapping[str, Any], saved: Callable[[str], Statistics], *, base: bool
) -> MethodSpec:
    """Returns the recipe's method, or the default; statistics that a source brings say which method they are for.

    Raises:
        RecipeError: statistics of different kinds.
    """
    files = [source.statistics for source in recipe.sources.values() if source.statistics is not None]
    if not recipe.open or not files:
        return with_options(recipe.resolved_method(data, base=base), recipe, data)
    kinds = {saved(file).estimator for file in files}
    if len(kinds) > 1:
        raise RecipeError(
            f"the statistics are of different kinds ({', '.join(sorted(kinds))}): estimate one kind"
        )
    kind = kinds.pop()
    found = {"name": "regmean"} if kind == "gram" else {"name": "fisher", "importance": kind}
    return (recipe.method or MethodSpec()).model_copy(update=found)


def with_options(method: MethodSpec, recipe: MergeRecipe, data: Mapping[str, Any]) -> MethodSpec:
    """Returns the default method, or the one without a base where only that has the options that are given."""
    wanted = set(method.options) | ({"forward"} if method.forward else set())
    if not recipe.open or wanted <= set(RULES[method.name].options):
        return method
    return method.model_copy(update={"name": recipe.resolved_method(data).name})


def usable_base(
    recipe: MergeRecipe, sources: Sequence[Checkpoint], orders: Mapping[str, Rows] | None = None
) -> Checkpoint | None:
    """Returns the base that a recipe names, else the one folder that all sources record, if it is there and fits.

    `orders` are those of labels that data have shown, by source.
    """
    trusted = recipe.trust_remote_code
    if recipe.base is not None:
        return fitted(open_checkpoint(recipe.base, name="base", trust_remote_code=trusted), sources)
    recorded = {source.recorded_base for source in sources}
    found = recorded.pop() if len(recorded) == 1 else None
    # A default does not ask the network.
    if found is None:
        return None
    if not Path(found).expanduser().is_dir():
        logger.info("the sources record the base %s, which is not here: name it with --base", found)
        return None
    try:
        base = fitted(open_checkpoint(found, name="base", trust_remote_code=trusted), sources)
        align(sources, base=base, tasks=recipe.tasks(), orders=orders)
    except PlaitError as error:
        logger.warning("the recorded base %s is not used: %s", found, error)
        return None
    return base


def label_orders(
    recipe: MergeRecipe,
    sources: tuple[Checkpoint, ...],
    data: Mapping[str, Any],
    judged: Mapping[str, Any],
    *,
    dry: bool,
) -> dict[str, Rows]:
    """Returns the order of placeholder labels by source, found on what a task is scored on, else on sources' data."""
    tasks = {
        task: [sources[i] for i in members] for task, members in group_tasks(sources, recipe.tasks()).items()
    }
    entries = {
        task: [
            judged.get(task, recipe.evaluate.get(task)),
            *(data.get(source.name, recipe.sources[source.name].data) for source in members),
        ]
        for task, members in tasks.items()
    }
    return orders_on_data(tasks, entries, dry=dry)
