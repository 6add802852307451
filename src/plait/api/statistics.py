"""Statistics of sources: estimated from data, read from files, or reused when nothing has changed."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import xxhash

import plait
from plait.api.inputs import read
from plait.checkpoints.places import check_apart
from plait.checkpoints.source import Checkpoint, open_checkpoint
from plait.data import Examples, align_labels, batches
from plait.errors import DataError, MergeError, OutputError, RecipeError, SourceError, listed
from plait.evaluation import head_kind, head_labels, head_problem
from plait.registry import canonical
from plait.statistics.estimate import estimate_statistics
from plait.statistics.estimator import ESTIMATORS
from plait.statistics.statistics import Statistics, load_statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from plait.api.planning import Plan

logger = logging.getLogger("plait")


def cache_folder() -> Path:
    """Returns where statistics are kept for reuse: `PLAIT_CACHE`, else plait/ in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PLAIT_CACHE") or Path(home) / "plait") / "statistics"


def key(provenance: Mapping[str, Any]) -> str:
    """Returns the cache key of statistics: a hash of everything that decides them."""
    return xxhash.xxh3_128_hexdigest(json.dumps(provenance, sort_keys=True, default=str).encode())


def gather(job: Plan) -> dict[str, Statistics]:
    """Returns the statistics that a plan's rule needs, per source; empty when it needs none."""
    if job.estimator is None:
        return {}
    return {source.name: of_source(job, source) for source in job.sources}


def of_source(job: Plan, source: Checkpoint) -> Statistics:
    """Returns one source's statistics: those it names, those in the cache, or estimated from its data."""
    if source.name in job.inputs.statistics:
        return job.inputs.statistics[source.name]
    method = job.method
    settings = {
        "labels": method.labels,
        "per": method.per,
        "seed": method.seed,
        "batch_size": method.batch_size,
        "max_length": method.max_length,
    }
    return cached(source, job.inputs.examples[source.name], job.estimator or "", settings)


def cached(source: Checkpoint, examples: Examples, estimator: str, settings: Mapping[str, Any]) -> Statistics:
    """Returns statistics from the cache when nothing that decides them has changed, else estimates and keeps them."""
    provenance = {
        "estimator": estimator,
        "source": source.digest,
        "circumstances": source.circumstances,
        "plait": plait.__version__,
        "data": examples.fingerprint,
        "examples": len(examples),
        # Only the reproduction `per: batch` depends on the batch size.
        **{k: v for k, v in settings.items() if k != "batch_size" or settings["per"] == "batch"},
    }
    file = cache_folder() / f"{key(provenance)}.safetensors"
    if (kept := from_cache(file)) is not None:
        logger.info("%s: reusing %s of %d examples", source.name, estimator, len(examples))
        return kept
    # Half precision would round small gradients to nothing.
    model = source.model(dtype=torch.float32)
    check_finite(model, source.name)
    found = estimated(model, source.tokenizer(), examples, estimator, settings, provenance)
    try:
        found.save(file)
    except (OSError, OutputError) as error:
        logger.warning("statistics are not kept for reuse: %s", error)
    return found


def check_finite(model: PreTrainedModel, name: str) -> None:
    """Raises `MergeError` when weights of a source hold NaN or Inf, naming every such parameter."""
    guilty = [parameter for parameter, values in model.named_parameters() if not values.isfinite().all()]
    if guilty:
        raise MergeError(f"{listed(guilty)} of {name} contains NaN or Inf: train or download it again")


def from_cache(file: Path) -> Statistics | None:
    """Returns statistics kept by an earlier run, or None; a damaged file is estimated again."""
    if not file.is_file():
        return None
    try:
        return load_statistics(file)
    except SourceError as error:
        logger.warning("kept statistics are not usable (%s): estimating again", error)
        return None


def estimated(  # noqa: PLR0917 - all six decide the result
    model: PreTrainedModel,
    tokenizer: Any,
    examples: Examples,
    estimator: str,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Statistics:
    """Returns statistics of a model on examples; labels are aligned with the head by name first."""
    kind, problem = head_kind(model), None
    if kind == "sequence_classification":
        problem = head_problem(model)
    needs_labels = estimator != "gram" and settings["labels"] == "given"
    if estimator != "gram" and kind is None:
        raise DataError(f"{type(model).__name__} has no head: only gram can be estimated without one")
    if needs_labels:
        if examples.labels is None:
            raise DataError(
                f"{examples.source}: has no labels; give some, or choose --labels sampled or exact"
            )
        examples = align_labels(examples, head_labels(model), kind=kind, problem_type=problem)
    else:
        examples = examples.unlabelled()
    inputs = batches(
        examples,
        tokenizer,
        problem_type=problem,
        batch_size=settings["batch_size"],
        max_length=settings["max_length"],
        config=model.config,
        labels=needs_labels,
    )
    return estimate_statistics(
        model,
        inputs,
        estimator=estimator,
        labels=settings["labels"],
        per=settings["per"],
        seed=settings["seed"],
        provenance=dict(provenance),
        total=ceil(len(examples) / settings["batch_size"]),
    )


def estimate(
    model: str | Path | PreTrainedModel,
    data: Any,
    *,
    importance: str = "mask_nodes",
    labels: str = "given",
    tokenizer: Any = None,
    batch_size: int = 16,
    examples: int | None = None,
    max_length: int | None = None,
    per: str = "example",
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Statistics:
    """Returns a model's statistics on data: `.of(parameter)` weighs a parameter, `.save(path)` shares them.

    Args:
        model: a checkpoint (folder or Hub id) or a transformers model in memory, which is left as it was.
        data: a file, a `datasets.Dataset`, columns, or `(texts, labels)`.
        importance: `mask_nodes`, `diagonal`, `block_traces`; or `gram` for RegMean.
        labels: `given`, `sampled` from the model, or `exact` (the expectation over the model's distribution).
        tokenizer: needed for a model in memory.
        batch_size: texts at a time; the result does not depend on it (except for `per="batch"`).
        examples: a random subset of this size; default all.
        max_length: tokens a text is cut at.
        per: `example`; `batch` only to reproduce published numbers.
        seed: of the subset and of sampled labels.
        out: a `.safetensors` file to write as well.
        overwrite: whether an existing `out` is replaced.
        revision: of a Hub id.
        trust_remote_code: whether the checkpoint may run its own code.

    Raises:
        PlaitError: unknown importance or labels, unusable data or model, existing output.
    """
    entry = ESTIMATORS[canonical(importance)]
    if batch_size < 1:
        raise RecipeError(f"batch_size is {batch_size} (expected 1 or more)")
    if out is not None:
        check_file(Path(out), overwrite=overwrite)
        check_apart(out, model, data)
    chosen = read(data, limit=examples, seed=seed)
    settings = {
        "labels": labels,
        "per": per,
        "seed": seed,
        "batch_size": batch_size,
        "max_length": max_length,
    }
    if isinstance(model, str | Path):
        source = open_checkpoint(model, revision=revision, trust_remote_code=trust_remote_code)
        found = cached(source, chosen, entry.name, settings)
    elif tokenizer is None:
        raise RecipeError("a model in memory needs its tokenizer: pass tokenizer=")
    else:
        provenance = {
            "estimator": entry.name,
            "data": chosen.fingerprint,
            "examples": len(chosen),
            **settings,
        }
        if model.dtype.itemsize < torch.float32.itemsize:
            model = cast("PreTrainedModel", copy.deepcopy(model).float())
        found = estimated(model, tokenizer, chosen, entry.name, settings, provenance)
    if out is not None:
        found.save(out)
    return found


def check_file(file: Path, *, overwrite: bool) -> None:
    """Raises `OutputError` when a file exists or its folder does not."""
    if file.exists() and not overwrite:
        raise OutputError(f"{file} exists: choose another output or pass --overwrite")
    if file.exists():
        try:
            load_statistics(file)
        except SourceError:
            raise OutputError(
                f"{file} holds no statistics, it will not be overwritten: choose another output"
            ) from None
    if not file.parent.is_dir():
        raise OutputError(f"{file.parent} is not a folder: make it first")
