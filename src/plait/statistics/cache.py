"""Statistics estimated from data, read from files, or reused while nothing has changed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor

import plait
from plait.checkpoints.beside import MODULES, modules_digest
from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint
from plait.checkpoints.embedders import embedder_of, is_embedder
from plait.checkpoints.places import check_apart
from plait.data import Examples, align_labels, batches
from plait.data.examples import ONE_ANSWER
from plait.data.language import encode_language, language_batches, of_language
from plait.data.reading import read
from plait.encoders.embedding import Embedder
from plait.encoders.heads import head_kind, head_labels, head_problem, language_kind
from plait.errors import DataError, MergeError, OutputError, RecipeError, SourceError, listed
from plait.processes import from_first, rank
from plait.registry import Entry, canonical
from plait.statistics.backward import Objective
from plait.statistics.cache_space import cache_folder, keep_within_limit, size_limit
from plait.statistics.embedding import as_objective, embedding_batches, single_texts
from plait.statistics.estimate import estimate_statistics
from plait.statistics.estimator import ESTIMATORS
from plait.statistics.importance import Statistics, load_statistics
from plait.statistics.likelihood import Cotangents

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("plait")
PASSES = 16
"""Backward passes per text at most, where the expectation over all labels is wanted."""


def key(provenance: Mapping[str, Any]) -> str:
    """Returns the cache key of statistics: a hash of everything that decides them."""
    return xxhash.xxh3_128_hexdigest(json.dumps(provenance, sort_keys=True, default=str).encode())


def provenance_of(
    source: Checkpoint, examples: Examples, estimator: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns everything that decides a source's statistics."""
    # Only the reproduction `per: batch` depends on the batch size, and only `exact` labels on the passes.
    idle = {"batch_size"} if settings["per"] != "batch" else set()
    idle |= {"passes"} if settings["labels"] != "exact" else set()
    return {
        "estimator": estimator,
        "source": source.digest,
        "circumstances": source.circumstances,
        **({"modules": modules_digest(source)} if (source.folder / MODULES).is_file() else {}),
        "plait": plait.__version__,
        "data": examples.fingerprint,
        "examples": len(examples),
        **{k: v for k, v in settings.items() if k not in idle},
    }


def cache_file(provenance: Mapping[str, Any]) -> Path:
    """Returns where statistics are kept for reuse."""
    return cache_folder() / f"{key(provenance)}.safetensors"


def cached(source: Checkpoint, examples: Examples, estimator: str, settings: Mapping[str, Any]) -> Statistics:
    """Returns statistics from the cache when nothing that decides them has changed, else estimates and keeps them."""
    size_limit()  # refuses what is no size
    provenance = provenance_of(source, examples, estimator, settings)
    file = cache_file(provenance)
    if (kept := from_first(from_cache(file) if rank() == 0 else None)) is not None:
        logger.info("%s: reusing %s of %d examples", source.name, estimator, len(examples))
        return kept
    # Half precision would round small gradients to nothing.
    if source.config.model_type == "clip":
        raise MergeError(f"{source.name}: a CLIP has two towers: save one of them, or take a method without data")
    if is_embedder(source):
        model: PreTrainedModel = embedder_of(source, dtype=torch.float32)
    else:
        model = source.model(language=source.objective is not None, dtype=torch.float32)
    check_finite(model, source.name)
    found = estimated(model, source.tokenizer(), examples, estimator, settings, provenance)
    if rank():
        return found
    try:
        found.save(file)
        keep_within_limit()
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
        found = load_statistics(file)
        with suppress(OSError):
            os.utime(file)  # what was used last is removed last
        return found
    except SourceError as error:
        logger.warning("kept statistics are not usable (%s): estimating again", error)
        return None


def usable(
    examples: Examples, estimator: str, labels: str, architecture: str, head: tuple[Any, Any, Any]
) -> Examples:
    """Returns examples as an estimator takes them, labels aligned with the head (kind, problem type, label names).

    The labels of language models are their texts, or the targets beside them.

    Raises:
        DataError: no head where one is needed, or no labels.
    """
    kind, problem, names = head
    if kind in ("causal", "seq2seq"):
        return of_language(examples, kind)
    if estimator != "gram" and kind is None:
        raise DataError(f"{architecture} has no head: only gram can be estimated without one")
    if estimator == "gram" or labels != "given":
        return examples.unlabelled()
    if examples.labels is None:
        raise DataError(examples.lacks_labels("give some, or choose --labels sampled or exact"))
    return align_labels(examples, names, kind=kind, problem_type=problem)


def estimated(  # noqa: PLR0917 - all six decide the result
    model: PreTrainedModel,
    tokenizer: Any,
    examples: Examples,
    estimator: str,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Statistics:
    """Returns statistics of a model on examples; labels are aligned with the head by name first."""
    if isinstance(model, Embedder):
        return _of_embedder(model, tokenizer, examples, estimator, settings, provenance)
    language = language_kind(model)
    kind = language or head_kind(model)
    problem = head_problem(model) if kind in ONE_ANSWER else None
    needs_labels = language is None and estimator != "gram" and settings["labels"] == "given"
    names = head_labels(model) if needs_labels else None
    examples = usable(examples, estimator, settings["labels"], type(model).__name__, (kind, problem, names))
    told: dict[str, Any] = {"max_length": settings["max_length"], "config": model.config}
    size, vocabulary = settings["batch_size"], getattr(model.config.get_text_config(), "vocab_size", 1)
    inputs: Iterable[Mapping[str, Tensor]]
    if language is not None:
        # A published reproduction depends on the batches; elsewhere they only need memory.
        words = 1 if settings["per"] == "batch" else vocabulary
        encoded = encode_language(examples, tokenizer, language, **told)
        inputs = (batch for _, batch in language_batches(encoded, size, words))
    else:
        inputs = batches(
            examples, tokenizer, problem_type=problem, batch_size=size, labels=needs_labels, **told
        )
    return estimate_statistics(
        model,
        inputs,
        estimator=estimator,
        labels=settings["labels"],
        per=settings["per"],
        passes=settings["passes"],
        seed=settings["seed"],
        provenance=dict(provenance),
        total=ceil(len(examples) / settings["batch_size"]),
    )


def _of_embedder(  # noqa: PLR0917 - all six decide the result
    model: Embedder,
    tokenizer: Any,
    examples: Examples,
    estimator: str,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Statistics:
    """Returns statistics of an embedding model: of cosines of pairs, of embeddings of single texts."""
    gram = estimator == "gram"
    chosen, labels = (single_texts(examples), "given") if gram else as_objective(examples, settings["labels"])
    sizes: dict[str, Any] = {name: settings[name] for name in ("batch_size", "max_length")}
    return estimate_statistics(
        model,
        embedding_batches(model, tokenizer, chosen, **sizes),
        estimator=estimator,
        labels=labels,  # type: ignore[arg-type]
        per=settings["per"],
        passes=settings["passes"],
        seed=settings["seed"],
        provenance={**provenance, "labels": labels, "architecture": type(model.backbone).__name__},
        total=ceil(len(chosen) / settings["batch_size"]),
    )


def asked(
    model: Any,
    data: Any,
    importance: str,
    examples: int | None,
    out: str | Path | None,
    *,
    overwrite: bool,
    **settings: Any,
) -> tuple[Entry[Any], Examples, dict[str, Any]]:
    """Returns estimator, examples and settings of arguments of `estimate`, once they are checked.

    Raises:
        PlaitError: unknown importance or labels, unusable data, an output that exists or overlaps an input, a
            limit of the cache that is no size.
    """
    size_limit()
    entry = ESTIMATORS[canonical(importance)]
    Objective(Cotangents(settings["labels"], settings["passes"]), settings["per"])  # refuses what it does not know
    for name in ("batch_size", "passes"):
        if settings[name] < 1:
            raise RecipeError(f"{name} is {settings[name]} (expected 1 or more)")
    if out is not None:
        check_file(Path(out), overwrite=overwrite)
        check_apart(out, model, data)
    return entry, read(data, limit=examples, seed=settings["seed"]), settings


def estimate_plan(
    model: str | Path,
    data: Any,
    *,
    importance: str = "mask_nodes",
    examples: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Returns what `estimate` would do with the same arguments, as plain data.

    Weights are read only to tell whether there are statistics that can be reused.

    Raises:
        PlaitError: anything that would stop it before its first computation.
    """
    known: dict[str, Any] = {
        "labels": "given", "per": "example", "passes": PASSES, "seed": 0, "batch_size": 16, "max_length": None,
    }  # fmt: skip
    entry, chosen, settings = asked(
        model, data, importance, examples, out, overwrite=overwrite, **{**known, **settings}
    )
    source = open_checkpoint(model, revision=revision, trust_remote_code=trust_remote_code)
    kind = source.objective if source.kind == "body" else source.kind
    head = (kind, source.problem_type, None if source.problem_type == "regression" else source.labels)
    if is_embedder(source):
        as_objective(chosen, settings["labels"])
    else:
        usable(chosen, entry.name, settings["labels"], source.architecture, head)
    return {
        "model": source.origin,
        "architecture": source.architecture,
        "estimator": entry.name,
        "examples": len(chosen),
        **settings,
        "reused": cache_file(provenance_of(source, chosen, entry.name, settings)).is_file(),
        "output": None if out is None else str(out),
    }


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
