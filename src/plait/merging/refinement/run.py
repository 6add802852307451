"""Refinement and heads fitted to the encoder, after a merge by a rule; apart because it alone trains."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from plait.checkpoints.checkpoint import Checkpoint
from plait.encoders.modes import seeded
from plait.merging.plan import Plan
from plait.merging.refinement import Refinement, SourceTexts, align_heads, refine, teaching
from plait.reports.record import Manifest
from plait.training.trainer import Schedule

logger = logging.getLogger("plait")


def improve(job: Plan, manifest: Manifest, folder: Path, state: Path, *, resume: bool) -> Manifest:
    """Returns the manifest of the merge in `folder` after all that its recipe wants done to it."""
    sources = [texts_of(job, source) for source in job.sources] if job.inputs.texts else []
    recipe, settings = job.recipe, settings_of(job)
    heads: dict[str, Any] = {}
    if recipe.refine:
        if recipe.refine_on == "logits":
            # The encoder should learn what a head cannot repair; states that are learned need no map beforehand.
            heads = aligned(job, [teaching(source, settings) for source in sources], folder)
        with seeded(job.method.seed):
            found = refine(folder, sources, settings, state=state, resume=resume)
        before, after = found["agreement"]["before"], found["agreement"]["after"]
        logger.info(
            "agreement with the sources on held-back texts: %.3f, before refinement %.3f", after, before
        )
        manifest = replace(manifest, refinement={**found, "data": data_of(job)})
    # Heads that have learned too would be thrown away by another fit.
    return replace(manifest, heads=heads if recipe.refine and recipe.refine_heads else aligned(job, sources, folder))


def settings_of(job: Plan) -> Refinement:
    """Returns how the recipe wants the merge to be refined."""
    recipe = job.recipe
    schedule = Schedule(
        float(recipe.refine or 0), recipe.refine_rate, recipe.refine_batch_size, weight_decay=0.0,
        seed=job.method.seed, precision=recipe.refine_precision,
    )  # fmt: skip
    return Refinement(
        schedule,
        on=recipe.refine_on,
        heads=recipe.refine_heads,
        dropout=recipe.refine_dropout,
        max_length=job.method.max_length,
    )


def aligned(job: Plan, sources: list[SourceTexts], folder: Path) -> dict[str, Any]:
    """Returns the record of heads fitted to the encoder in `folder`, empty where none are to be."""
    kind = job.recipe.align_heads
    if kind is None or kind == "none":
        return {}
    length = job.method.max_length
    error = align_heads(folder, sources, kind, ridge=job.recipe.align_ridge, max_length=length)
    return {"map": kind, "data": data_of(job), "error": error}


def texts_of(job: Plan, source: Checkpoint) -> SourceTexts:
    """Returns a source with its texts, as refinement takes it."""
    weight = job.recipe.sources[source.name].weight
    return SourceTexts(
        source.name,
        job.recipe.tasks()[source.name],
        partial(source.model, dtype=torch.float32),
        source.tokenizer,
        job.inputs.texts[source.name],
        job.alignment.head_rows.get(source.name),
        1.0 if weight is None else weight,
    )


def data_of(job: Plan) -> dict[str, dict[str, Any]]:
    """Returns by source where its texts came from, how many there are, and their fingerprint."""
    return {
        name: {"source": texts.source, "texts": len(texts), "fingerprint": texts.fingerprint}
        for name, texts in job.inputs.texts.items()
    }


def _by_layer(job: Plan) -> dict[str, Any]:
    entries = {name: s.model_dump(mode="json")["layer_weights"] for name, s in job.recipe.sources.items()}
    return {"layer_weights": entries} if any(entries.values()) else {}


def identity(job: Plan) -> dict[str, Any]:
    """Returns what must be the same for a merge to be resumed."""
    unimportant = {"output", "sources", "evaluate", "max_shard_size", "search_batch", "storage", "validation"}
    recipe = job.resolved().model_dump(mode="json", exclude=unimportant)
    return {
        **recipe,
        "weights": job.recipe.weights(),
        **_by_layer(job),
        "tasks": job.recipe.tasks(),
        "digests": {source.name: source.digest for source in job.sources},
        "labels": {source.name: list(source.labels or ()) for source in job.sources},
        "statistics": {name: str(found.facts) for name, found in job.inputs.statistics.items()},
        "base_digest": job.alignment.base.digest if job.alignment.base is not None else None,
        "texts": {name: texts.fingerprint for name, texts in job.inputs.texts.items()},
        "examples": {name: texts.fingerprint for name, texts in job.inputs.examples.items()},
        "validation": {name: rows.fingerprint for name, rows in job.inputs.split.rows.items()},
    }
