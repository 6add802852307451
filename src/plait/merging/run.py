"""A merge, stage by stage: estimate, combine, write, improve, evaluate, report."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from transformers import PretrainedConfig

from plait.checkpoints.beside import MODULES, carry
from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.output import write_whole
from plait.checkpoints.tokenizers import copy_tokenizer, keep_tokenizer, limits
from plait.checkpoints.writer import atomic_folder, save_tensors, writing
from plait.errors import RecipeError
from plait.merging import chunks
from plait.merging.adapters import run_adapters
from plait.merging.chunks import InMemory
from plait.merging.describing import describe_result, describe_task, recorded, summary_of
from plait.merging.engine import combine, write_alike, write_jobs
from plait.merging.folders import HEAD, TASKS, complete, copy_generation
from plait.merging.forward import merge_forward
from plait.merging.job import Job, prepare
from plait.merging.layout import Layout, numbered
from plait.merging.merged import Merged
from plait.merging.plan import Plan, check_output, plan
from plait.merging.refinement.files import agree
from plait.merging.refinement.run import identity, improve
from plait.merging.rule import RULES
from plait.merging.scores import scores_of
from plait.merging.search.run import search
from plait.recipe import MergeRecipe
from plait.reports.cards import model_card
from plait.reports.record import FILE, Manifest
from plait.statistics.cache import PASSES, cached
from plait.statistics.importance import Statistics
from plait.training.state import check_state, finished_job, full_disk, is_finished, job_key, training_state

PLAIN = frozenset({"params", "weights", "base", "thresholds", "ceilings", "draws", "depth"})
"""Inputs of rules that a parameter outside the encoder can be merged by as well."""
INFORMED = frozenset({"importances", "typical", "grams", "crosses"})
"""Those that need statistics of a language model's head besides."""


def write_checkpoint(
    job: Plan, statistics: Mapping[str, Statistics], folder: Path, state: Path
) -> dict[str, str]:
    """Returns the sources' digests after writing body, heads, configs and tokenizer into an empty folder."""
    merges = begun(job, statistics, folder, state)
    write_jobs(folder, merges, rename=stored_names(job), max_shard_size=job.recipe.max_shard_size)
    write_beside(job, folder)
    return {source.name: source.digest for source in job.sources}


def write_candidates(
    plans: Sequence[Plan], folders: Sequence[Path], *, statistics: Mapping[str, Statistics]
) -> None:
    """Writes merges that differ in options and weights alone into new folders, in one pass over the sources.

    They can be opened and asked like any merge; what only a finished one has is left out.
    """
    merges = []
    for job, folder in zip(plans, folders, strict=True):
        folder.mkdir(parents=True)
        merges.append(begun(job, statistics, folder, folder / "state"))
    first = plans[0]
    write_alike(
        folders, list(zip(*merges, strict=True)), rename=stored_names(first),
        max_shard_size=first.recipe.max_shard_size, digests=False,
    )  # fmt: skip
    for job, folder in zip(plans, folders, strict=True):
        write_beside(job, folder)
        sources = {source.name: {"origin": source.origin} for source in job.sources}
        Manifest({name: describe_task(job, name) for name in job.alignment.tasks}, sources, {}, {}).write(folder)


def begun(job: Plan, statistics: Mapping[str, Statistics], folder: Path, state: Path) -> list[Job]:
    """Returns the merges of all parameters but the tasks' own, which have been written."""
    dtype = output_dtype(job)
    for task in job.alignment.tasks:
        write_task(job, task, folder / TASKS / task, dtype)
    weightings = None if job.forward else weigh(job, statistics)
    merges = forward_jobs(job, dtype, state) if job.forward else jobs(job, weightings, dtype)
    return [*merges, *language_jobs(job, dtype, weightings), *head_jobs(job, folder)]


def write_beside(job: Plan, folder: Path) -> None:
    """Writes config and tokenizers beside the weights."""
    whole_config(job).save_pretrained(folder)
    carry_beside(job, folder)
    if is_language_model(job):
        copy_generation(job.sources[0].settings_folder, folder)
    if job.alignment.tokenizer_source is not None:
        tokenizer = job.alignment.tokenizer_source.tokenizer()
        # Each source records the length of its training: no task may be cut shorter than it was trained.
        tokenizer.model_max_length = max([tokenizer.model_max_length, *limits(s.tokenizer_folder for s in job.sources)])
        keep_tokenizer(tokenizer, folder)
    copy_own_tokenizers(job, folder)


def copy_own_tokenizers(job: Plan, folder: Path) -> None:
    """Writes beside a task's head the tokenizer that puts a space before the first word where the shared one does not.

    Or the other way round: one encoder serves both.
    """
    for task in job.alignment.tasks:
        if (source := job.alignment.own_tokenizer(task)) is not None:
            logger.info("task %s keeps the tokenizer of %s (add_prefix_space)", task, source.name)
            copy_tokenizer(source.tokenizer_folder, folder / TASKS / task)


def carry_beside(job: Plan, folder: Path) -> None:
    """Writes pooling, layers and prompts of embedding models into the result, see `checkpoints.beside`."""
    every = job.recipe.weights()
    having = [i for i, source in enumerate(job.sources) if (source.folder / MODULES).is_file()]
    weights = None if every is None or not any(every[i] for i in having) else [every[i] for i in having]
    carry(job.sources, folder, weights)


def stored_names(job: Plan) -> Callable[[str], str]:
    """Returns what the result calls a parameter: that of the body as models with a head do, if there are any."""
    headed = any(s.kind != "body" or s.language_class is not None for s in job.sources)
    prefix = f"{job.sources[0].prefix}." if headed and job.sources[0].prefix else ""
    return lambda name: f"{prefix}{name}" if name in job.alignment.owners else name


def only_task(job: Plan) -> str | None:
    """Returns the task of a merge that has one, with a head: the result is an ordinary model for it."""
    alone = len(job.alignment.tasks) == 1 and job.sources[0].kind != "body"
    return next(iter(job.alignment.tasks)) if alone else None


def is_language_model(job: Plan) -> bool:
    """Returns whether all sources are language models of one class, as the result is then."""
    classes = {source.language_class for source in job.sources}
    return len(classes) == 1 and None not in classes


def output_dtype(job: Plan) -> torch.dtype:
    """Returns the dtype of everything that is written: as asked, else the narrowest that holds every source's."""
    if job.recipe.dtype is not None:
        return cast(torch.dtype, getattr(torch, job.recipe.dtype))
    dtypes = [s.header(stored).dtype for s in job.sources for stored in (*s.body.values(), *s.head.values())]
    return reduce(torch.promote_types, dtypes)


def weigh(job: Plan, statistics: Mapping[str, Statistics]) -> list[Any] | None:
    """Returns per source what its statistics say of each parameter: importances, or Gram matrices as they are."""
    if not statistics:
        return None
    from plait.statistics.importance import as_importance

    if job.estimator == "gram":
        return [statistics[s.name] for s in job.sources]
    # Checked by the plan, which knows the names; here they are literals.
    options: dict[str, Any] = {"mapping": job.method.mapping, "normalize": job.method.normalize}
    return [as_importance(statistics[s.name], job.topology, **options) for s in job.sources]


def bodies(job: Plan) -> dict[str, tuple[int, ...]]:
    """Returns the owners of the body's parameters; a merge with one task has the pooler of its head instead."""
    own = job.alignment.poolers if only_task(job) else ()
    return {name: owners for name, owners in job.alignment.owners.items() if name not in own}


def jobs(job: Plan, weightings: Sequence[Any] | None, dtype: torch.dtype) -> list[Job]:
    """Returns one merge for each group of parameters that the same sources have (not all have a pooler)."""
    groups: dict[tuple[tuple[int, ...], Weights], list[str]] = {}
    weights = LayerWeights.of(job)
    for parameter, owners in bodies(job).items():
        groups.setdefault((tuple(owners), weights.at(parameter, owners)), []).append(parameter)
    return [
        group_job(job, owners, names, weightings, dtype, weights=shares)
        for (owners, shares), names in groups.items()
    ]


Weights = tuple[float, ...] | None
"""λ of the owners of a parameter; None where all count alike."""


@dataclass(frozen=True)
class LayerWeights:
    """λ of each source for each parameter: by its layer, and by its name in the result."""

    recipe: MergeRecipe
    layout: Layout
    rename: Callable[[str], str]

    @classmethod
    def of(cls, job: Plan) -> LayerWeights:
        """Returns the weights of a merge."""
        return cls(job.recipe, Layout([*job.alignment.owners, *job.alignment.language]), stored_names(job))

    def at(self, parameter: str, owners: Sequence[int]) -> Weights:
        """Returns λ of a parameter's owners; what lies outside the layers counts as the first of them."""
        depth = self.layout.depth(parameter) if numbered(parameter) is not None else 0.0
        every = self.recipe.weights_at(self.rename(parameter), depth)
        return None if every is None else tuple(every[i] for i in owners)


def forward_jobs(job: Plan, dtype: torch.dtype, state: Path) -> list[Job]:
    """Returns what a merge in forward order gave, and the averages of parameters that not all sources have."""
    kept = bodies(job)
    merged = InMemory("merged", {name: tensor for name, tensor in merge_forward(job, state).items() if name in kept})
    found = [prepare([merged], list(merged.tensors), RULES["average"], dtype=dtype)]
    rest: dict[tuple[int, ...], list[str]] = {}
    for parameter, owners in kept.items():
        if parameter not in merged:
            rest.setdefault(tuple(owners), []).append(parameter)
    average, weights = RULES["average"], LayerWeights.of(job)
    return found + [
        group_job(job, owners, names, None, dtype, rule=average, weights=weights.at(names[0], owners))
        for owners, names in rest.items()
    ]


def group_job(
    job: Plan,
    owners: tuple[int, ...],
    names: list[str],
    weightings: Sequence[Any] | None,
    dtype: torch.dtype,
    *,
    rule: Any = None,
    weights: Weights = None,
) -> Job:
    """Returns the merge of the parameters that these sources have, by the plan's rule unless another is given.

    A rule for two models averages where one has them.
    """
    alone = weights is not None and not any(weights)
    rule = rule or (job.rule if len(owners) == len(job.sources) else shrunk(job, len(owners)))
    chosen = None if weightings is None else [weightings[i] for i in owners]
    return prepare(
        [chunks.body(job.sources[i]) for i in owners],
        names,
        rule,
        weights=None if alone else weights,
        importances=chosen if "importances" in rule.inputs else None,
        grams=chosen if "grams" in rule.inputs else None,
        base=chunks.body(job.alignment.base)
        if job.alignment.base is not None and "base" in rule.inputs
        else None,
        options=job.method.options if rule is job.rule else {},
        dtype=dtype,
        seed=job.method.seed,
        topology=job.topology,
    )


def language_jobs(
    job: Plan, dtype: torch.dtype, weightings: Sequence[Any] | None = None
) -> list[Job]:
    """Returns the merges of language models' heads, by the rule of the body; averages in forward order."""
    groups: dict[tuple[tuple[int, ...], Weights], list[str]] = {}
    every = LayerWeights.of(job)
    for parameter, owners in job.alignment.language.items():
        groups.setdefault((owners, every.at(parameter, owners)), []).append(parameter)
    base = job.alignment.base
    merges = []
    for (owners, weights), names in groups.items():
        rule = job.rule if len(owners) == len(job.sources) else shrunk(job, len(owners))
        known = PLAIN | (INFORMED if weightings is not None else set())
        rule = rule if set(rule.inputs) <= known and not job.forward else RULES["average"]
        chosen = None if weightings is None else [weightings[i] for i in owners]
        merges.append(
            prepare(
                [chunks.head(job.sources[i]) for i in owners],
                names,
                rule,
                weights=weights if weights and any(weights) else None,
                importances=chosen if "importances" in rule.inputs else None,
                grams=chosen if "grams" in rule.inputs else None,
                base=chunks.head(base) if base is not None and "base" in rule.inputs else None,
                options=job.method.options if rule is job.rule else {},
                dtype=dtype,
                seed=job.method.seed,
            )
        )
    return merges


def head_jobs(job: Plan, folder: Path) -> list[Job]:
    """Returns what copies the head of a merge with one task to its encoder, so that the two are one file."""
    task = only_task(job)
    if task is None or not (file := folder / TASKS / task / HEAD).is_file():
        return []
    held = InMemory(task, load_file(file))
    return [prepare([held], list(held.tensors), RULES["average"])]


def shrunk(job: Plan, count: int) -> Any:
    """Returns the plan's rule where it can merge `count` sources, else the average."""
    wanted = job.rule.facts.get("sources")
    return job.rule if wanted is None or wanted == count else RULES["average"]


def write_task(job: Plan, task: str, folder: Path, dtype: torch.dtype) -> None:
    """Writes one task's config, head and pooler; sources that share a task have theirs averaged, labels aligned."""
    folder.mkdir(parents=True)
    members = job.alignment.tasks[task]
    sources = [job.sources[i] for i in members]
    every = job.recipe.weights()
    weights = None if every is None or not any(every[i] for i in members) else [every[i] for i in members]
    own = [job.alignment.own(source) for source in sources]
    rows = job.alignment.head_rows
    heads = [chunks.head(s, rows.get(s.name), stored) for s, stored in zip(sources, own, strict=True)]
    names = list(own[0])
    if names:
        merged = dict(combine(heads, names, RULES["average"], weights=weights, dtype=dtype))
        save_tensors(folder, merged, stem=HEAD.removesuffix(".safetensors"))
    own_config(sources[0], dtype).save_pretrained(folder)
    if sources[0].language_class is not None:
        copy_generation(sources[0].settings_folder, folder)


def own_config(source: Checkpoint, dtype: torch.dtype) -> PretrainedConfig:
    """Returns the config of a source's class, which is the bare encoder where its head cannot be carried."""
    config = with_dtype(source.config, dtype)
    config.architectures = [source.carried_as]
    return config


def whole_config(job: Plan) -> PretrainedConfig:
    """Returns the config of the result's top: that of its only task, of the language model, or of the encoder."""
    if only_task(job) is not None or is_language_model(job):
        return own_config(job.sources[0], output_dtype(job))
    return body_config(job)


def body_config(job: Plan) -> PretrainedConfig:
    """Returns the config of the shared body: an ordinary base model's, without labels or a task's settings."""
    source = job.sources[0]
    content = source.config.to_diff_dict()
    for key in (
        "architectures",
        "id2label",
        "label2id",
        "problem_type",
        "_name_or_path",
        "torch_dtype",
        "dtype",
    ):
        content.pop(key, None)
    config = type(source.config)(**content)
    config.architectures = [base_class_name(source)]
    if named := [f"untrained head: open tasks/{task}" for task in headed_tasks(job)][:2]:
        # Who opens the encoder as a classifier gets a head drawn at random; its answers say so.
        config.id2label = dict(enumerate(named * 2 if len(named) == 1 else named))
        config.label2id = {label: row for row, label in config.id2label.items()}
    return with_dtype(config, output_dtype(job))


def headed_tasks(job: Plan) -> list[str]:
    """Returns the tasks that have a head."""
    return [task for task, members in job.alignment.tasks.items() if job.sources[members[0]].kind != "body"]


def with_dtype(config: PretrainedConfig, dtype: torch.dtype) -> PretrainedConfig:
    """Returns a copy of a config that says the dtype of its weights."""
    copy = type(config)(**config.to_dict())
    copy.architectures = config.architectures
    copy.dtype = dtype
    return copy


def base_class_name(source: Checkpoint) -> str:
    """Returns the name of the bare encoder's class."""
    with torch.device("meta"):
        return type(source.model_class(source.config).base_model).__name__


logger = logging.getLogger("plait")


def run_merge(
    recipe: MergeRecipe,
    *,
    data: Mapping[str, Any] | None = None,
    judged: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Merged:
    """Returns the merge of a recipe; `data`, `judged` and `validation` are in memory, not in files.

    Of adapters that stay one it is a `MergedAdapter`.
    """
    if recipe.keep_adapter is not None and (data or judged):
        raise RecipeError("data cannot be had with --keep-adapter, which merges adapters without data")
    if recipe.keep_adapter is not None:
        return cast(Merged, run_adapters(recipe, overwrite=overwrite))
    ended = resume and finished_job(recipe.output) is not None
    check_output(recipe, overwrite=overwrite or ended)
    with writing(recipe.output, overwrite=overwrite or ended):
        job = plan(recipe, data, judged, validation=validation)
        if ended and is_finished(recipe.output, identity(job)):
            score_finished(job, Path(recipe.output))
            return Merged(recipe.output)
        check_output(recipe, overwrite=overwrite)
        return write_merge(job, recipe.output, overwrite=overwrite, resume=resume)


def write_merge(job: Plan, output: str | Path, *, overwrite: bool = False, resume: bool = False) -> Merged:
    """Returns the merge of a plan, written to `output`."""
    logger.info("merging %s with %s", ", ".join(s.name for s in job.sources), summary_of(job))
    statistics = gather(job)
    out = Path(os.path.realpath(output))
    with (
        training_state(out, keep=True, resume=resume) as state,
        full_disk(out),
        atomic_folder(out, overwrite=overwrite) as folder,
    ):
        asked = job_key(identity(job))
        found: dict[str, Any] = {}
        if job.recipe.search:
            tasks = {name: describe_task(job, name) for name in job.alignment.tasks}
            job, found = search(job, tasks, partial(write_candidates, statistics=statistics), state)
        if job.forward or job.recipe.refine:
            check_state(state, identity(job))
        digests = write_checkpoint(job, statistics, folder, state)
        manifest = replace(describe_result(job, statistics, digests), job=asked, search=found)
        manifest.write(folder)
        manifest = improve(job, manifest, folder, state, resume=resume)
        agree(folder, manifest.tasks)
        complete(folder, manifest.tasks)
        finish(job, manifest, folder)
    shutil.rmtree(state, ignore_errors=True)
    return Merged(output)


def finish(job: Plan, manifest: Manifest, folder: Path) -> None:
    """Writes manifest and card into the unfinished output, and scores it where there is data for that."""
    manifest.write(folder)
    if job.inputs.judged:
        manifest = scored(job, manifest, folder)
        manifest.write(folder)
    (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")


def score_finished(job: Plan, folder: Path) -> None:
    """Scores an output that was finished before, where that is asked for and not yet done; its record says so."""
    before = Merged(folder).manifest
    recipe = {**before.recipe, "evaluate": recorded(job).get("evaluate", {})}
    known = {task: found["examples"] for task, found in before.scores.get("tasks", {}).items()}
    asked = {task: len(examples) for task, examples in job.inputs.judged.items()}
    if not asked or (known == asked and before.recipe.get("evaluate", {}) == recipe["evaluate"]):
        return
    manifest = scored(job, replace(before, recipe=recipe), folder)
    write_whole(folder / "README.md", model_card(manifest).encode())
    write_whole(folder / FILE, manifest.text().encode())


def scored(job: Plan, manifest: Manifest, folder: Path) -> Manifest:
    """Returns a manifest with the scores of a merge beside those of its sources."""
    opened = {source.name: source for source in job.sources}
    trust = job.recipe.trust_remote_code
    found = scores_of(Merged(folder), job.inputs.judged, trust_remote_code=trust, opened=opened)
    return replace(manifest, scores={**found.to_dict(), "model": job.recipe.output})


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
        "passes": PASSES,
        "seed": method.seed,
        "batch_size": method.batch_size,
        "max_length": method.max_length,
    }
    return cached(source, job.inputs.examples[source.name], job.estimator or "", settings)
