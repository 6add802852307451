"""What a merge is given besides its sources: data, saved statistics, and rows to score on, read before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.checkpoints.source import Checkpoint
from plait.data import Examples, align_labels, read_examples
from plait.errors import DataError, RecipeError, did_you_mean, listed
from plait.recipe import DataSpec, MergeRecipe, MethodSpec
from plait.statistics.statistics import Statistics, load_statistics


@dataclass(frozen=True)
class Inputs:
    """Examples, statistics and texts to refine on by source, and rows to score on by task."""

    examples: Mapping[str, Examples] = field(default_factory=dict)
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    judged: Mapping[str, Examples] = field(default_factory=dict)
    texts: Mapping[str, Examples] = field(default_factory=dict)


def is_file(entry: Any) -> bool:
    """Returns whether data is named by a path, which a recipe can keep, rather than held in memory."""
    return isinstance(entry, str | Path) or (isinstance(entry, Mapping) and "path" in entry)


def read(data: Any, *, limit: int | None = None, seed: int = 0) -> Examples:
    """Returns examples from a recipe's data entry or from data in memory."""
    if isinstance(data, DataSpec):
        return read_examples(data.path, limit=limit, seed=seed, **data.columns())
    return read_examples(data, limit=limit, seed=seed)


def read_inputs(  # noqa: PLR0917 - what a merge is given, in the order of its stages
    recipe: MergeRecipe,
    method: MethodSpec,
    estimator: str | None,
    sources: tuple[Checkpoint, ...],
    data: Mapping[str, Any],
    judged: Mapping[str, Any],
) -> Inputs:
    """Returns all that a merge reads besides weights, so that what is wrong with it shows before anything is computed.

    Raises:
        DataError: data that is missing, empty, misnamed, without labels or with labels that a head does not have;
            statistics of other weights.
        RecipeError: statistics of another kind, or `evaluate` for a task that is not there.
    """
    examples, statistics = {}, {}
    for source in sources if estimator is not None else ():
        spec = recipe.sources[source.name]
        if spec.statistics is not None:
            statistics[source.name] = from_file(spec.statistics, source, estimator or "", method)
        else:
            found = read(data.get(source.name, spec.data), limit=method.examples, seed=method.seed)
            if estimator != "gram" and method.labels == "given":
                check_labels(found, source)
            examples[source.name] = found
    return Inputs(
        examples,
        statistics,
        read_judged(recipe, sources, judged),
        read_texts(recipe, method, sources, data),
    )


def read_texts(
    recipe: MergeRecipe, method: MethodSpec, sources: tuple[Checkpoint, ...], data: Mapping[str, Any]
) -> dict[str, Examples]:
    """Returns the texts, without labels, that the result is refined on or its heads are aligned on."""
    if not (recipe.refine or recipe.align_heads not in (None, "none")):
        return {}
    given = {s.name: data.get(s.name, recipe.sources[s.name].data) for s in sources}
    return {
        name: read(entry, limit=recipe.refine_texts, seed=method.seed).unlabelled()
        for name, entry in given.items()
    }


def read_judged(
    recipe: MergeRecipe, sources: tuple[Checkpoint, ...], judged: Mapping[str, Any]
) -> dict[str, Examples]:
    """Returns the rows to score on by task, whose labels the task's head knows."""
    named = {**recipe.evaluate, **judged}
    firsts: dict[str, Checkpoint] = {}
    for source in sources:
        firsts.setdefault(recipe.tasks()[source.name], source)
    strangers = [
        f"evaluate names unknown task {n!r}{did_you_mean(n, firsts)}" for n in named if n not in firsts
    ]
    if strangers:
        raise RecipeError(listed(strangers))
    found = {task: read(entry) for task, entry in named.items()}
    for task, examples in found.items():
        if examples.labels is None:
            raise DataError(f"{examples.source}: has no labels, which the scores of task {task} need")
        check_labels(examples, firsts[task])
    return found


def check_labels(examples: Examples, source: Checkpoint) -> None:
    """Raises `DataError` when examples have no labels, or labels that a source's head does not have."""
    if source.kind == "body":
        raise DataError(f"{source.name} has no head, so labelled data mean nothing to it: leave its data out")
    if examples.labels is None:
        raise DataError(f"{examples.source}: has no labels; give some, or choose --labels sampled or exact")
    kind: Any = source.kind
    problem: Any = source.problem_type
    align_labels(examples, source.labels, kind=kind, problem_type=problem)


def from_file(path: str, source: Checkpoint, estimator: str, method: MethodSpec) -> Statistics:
    """Returns saved statistics after checking that they are of this source and of the kind the method needs.

    Raises:
        RecipeError: another estimator.
        DataError: statistics of other weights.
    """
    found = load_statistics(path)
    if found.estimator != estimator:
        raise RecipeError(
            f"{path} holds {found.estimator}, the method needs {estimator}: estimate them again"
        )
    digest = found.provenance.get("source")
    if digest is not None and digest != source.digest:
        raise DataError(f"{path} was estimated on other weights than {source.origin} (source {source.name})")
    for name in {"labels", "per"} & method.model_fields_set:
        wanted, given = getattr(method, name), found.provenance.get(name)
        if estimator != "gram" and given is not None and given != wanted:
            raise RecipeError(f"{path} was estimated with {name} {given}, the method asks for {wanted}")
    return found
