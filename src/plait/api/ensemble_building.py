"""What is trained, before it is: new heads on a base, or models that exist with one bottom."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError

from plait.api.ensemble_plan import EnsemblePlan
from plait.checkpoints.files import first_line
from plait.ensembles.building import check_sources, from_checkpoints, new_ensemble
from plait.ensembles.modeling import Ensemble
from plait.errors import SourceError, listed
from plait.merging import parts
from plait.merging.engine import combine
from plait.merging.rule import RULES


def build(job: EnsemblePlan, members: int, seed: int) -> Ensemble:
    """Returns an ensemble before training: new heads on the base, or the given models with one bottom.

    Raises:
        SourceError: weights that cannot be read.
    """
    try:
        return opened(job, members, seed)
    except (OSError, SafetensorError) as error:
        names = listed(source.origin for source in job.sources)
        raise SourceError(f"{names}: cannot be opened: {first_line(error)}") from error


def opened(job: EnsemblePlan, members: int, seed: int) -> Ensemble:
    """Returns what `build` makes."""
    recipe = job.recipe
    if recipe.sources is not None and not job.choice.taught:
        return from_checkpoints(
            job.sources,
            shared_layers=recipe.shared_layers,
            shared=merged_bottom(job),
            head=recipe.head,
            classifier_dropout=recipe.classifier_dropout,
            problem_type=job.head.problem_type,
        )
    return new_ensemble(
        job.sources[0],
        members=members,
        labels=job.head.names,
        kind=job.kind,
        problem_type=job.head.problem_type,
        shared_layers=recipe.shared_layers,
        head=recipe.head,
        classifier_dropout=recipe.classifier_dropout,
        seed=seed,
    )


def built(job: EnsemblePlan) -> tuple[Ensemble, ...]:
    """Returns models that exist as ensembles of one member each, with the labels in one order, to be averaged.

    Raises:
        MergeError: models that differ in more than their weights.
    """
    sources = job.teachers or job.sources
    check_sources(sources)
    recipe = job.recipe
    return tuple(
        from_checkpoints(
            (source,),
            head=recipe.head,
            classifier_dropout=recipe.classifier_dropout,
            problem_type=job.head.problem_type,
            labels=job.head.names,
        )
        for source in sources
    )


def merged_bottom(job: EnsemblePlan) -> dict[str, Any]:
    """Returns the average of the sources' encoders, which the merge engine makes; one of them is as it is."""
    names = [name for name in job.sources[0].body if all(name in s.body for s in job.sources)]
    bodies = [parts.body(source) for source in job.sources]
    return dict(combine(bodies, names, RULES["average"], dtype=torch.float32))
