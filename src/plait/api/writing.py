"""The stages combine and write: the body's parameters stream to disk, each task's head and config go beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PretrainedConfig

from plait.api.forwarding import merge_forward
from plait.api.planning import Plan
from plait.checkpoints.source import Checkpoint
from plait.checkpoints.topology import topology, topology_of
from plait.checkpoints.writer import save_tensors
from plait.merging import parts
from plait.merging.engine import combine, write_jobs
from plait.merging.job import Job, prepare
from plait.merging.merged import TASKS
from plait.merging.parts import Held
from plait.merging.rule import RULES
from plait.statistics.statistics import Statistics


def write_checkpoint(
    job: Plan, statistics: Mapping[str, Statistics], folder: Path, state: Path
) -> dict[str, str]:
    """Returns the sources' digests after writing body, heads, configs and tokenizer into an empty folder."""
    dtype = output_dtype(job)
    merges = forward_jobs(job, dtype, state) if job.forward else jobs(job, weigh(job, statistics), dtype)
    write_jobs(folder, merges, max_shard_size=job.recipe.max_shard_size)
    for task in job.alignment.tasks:
        write_task(job, task, folder / TASKS / task, dtype)
    body_config(job).save_pretrained(folder)
    if job.alignment.tokenizer_source is not None:
        job.alignment.tokenizer_source.tokenizer().save_pretrained(folder)
    return {source.name: source.digest for source in job.sources}


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
    places = topology(job.sources[0].config)
    # Checked by the plan, which knows the names; here they are literals.
    options: dict[str, Any] = {"mapping": job.method.mapping, "normalize": job.method.normalize}
    return [as_importance(statistics[s.name], places, **options) for s in job.sources]


def jobs(job: Plan, weightings: Sequence[Any] | None, dtype: torch.dtype) -> list[Job]:
    """Returns one merge for each group of parameters that the same sources have (not all have a pooler)."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for parameter, owners in job.alignment.owners.items():
        groups.setdefault(tuple(owners), []).append(parameter)
    return [group_job(job, owners, names, weightings, dtype) for owners, names in groups.items()]


def forward_jobs(job: Plan, dtype: torch.dtype, state: Path) -> list[Job]:
    """Returns what a merge in forward order gave, and the averages of parameters that not all sources have."""
    merged = Held("merged", merge_forward(job, state))
    found = [prepare([merged], list(merged.tensors), RULES["average"], dtype=dtype)]
    rest: dict[tuple[int, ...], list[str]] = {}
    for parameter, owners in job.alignment.owners.items():
        if parameter not in merged:
            rest.setdefault(tuple(owners), []).append(parameter)
    average = RULES["average"]
    return found + [group_job(job, owners, names, None, dtype, rule=average) for owners, names in rest.items()]


def group_job(
    job: Plan,
    owners: tuple[int, ...],
    names: list[str],
    weightings: Sequence[Any] | None,
    dtype: torch.dtype,
    *,
    rule: Any = None,
) -> Job:
    """Returns the merge of the parameters that these sources have, by the plan's rule unless another is given.

    A rule for two models averages where one has them.
    """
    every = job.recipe.weights()
    weights = None if every is None else [every[i] for i in owners]
    alone = weights is not None and not any(weights)
    rule = rule or (job.rule if len(owners) == len(job.sources) else shrunk(job, len(owners)))
    chosen = None if weightings is None else [weightings[i] for i in owners]
    return prepare(
        [parts.body(job.sources[i]) for i in owners],
        names,
        rule,
        weights=None if alone else weights,
        importances=chosen if "importances" in rule.inputs else None,
        grams=chosen if "grams" in rule.inputs else None,
        base=parts.body(job.alignment.base)
        if job.alignment.base is not None and "base" in rule.inputs
        else None,
        options=job.method.options if rule is job.rule else {},
        dtype=dtype,
        seed=job.method.seed,
        topology=topology_of(job.sources[0].config),
    )


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
    heads = [parts.head(s, rows.get(s.name), stored) for s, stored in zip(sources, own, strict=True)]
    names = list(own[0])
    if names:
        save_tensors(folder, dict(combine(heads, names, RULES["average"], weights=weights, dtype=dtype)))
    with_dtype(sources[0].config, dtype).save_pretrained(folder)


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
    return with_dtype(config, output_dtype(job))


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
