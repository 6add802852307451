"""The merge, stage by stage: open > align > estimate > combine > write > evaluate > report."""

from __future__ import annotations

import logging
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from plait.api.inputs import is_file
from plait.api.planning import Plan, check_output, plan
from plait.api.refining import identity, improve
from plait.api.statistics import gather
from plait.api.writing import write_checkpoint
from plait.checkpoints.writer import atomic_folder, writing
from plait.errors import RecipeError, did_you_mean, listed
from plait.merging.folders import complete
from plait.merging.manifest import BASE, Manifest, Task
from plait.merging.merged import Merged
from plait.merging.refinement.files import agree
from plait.recipe import AUTO, MergeRecipe, parse_as
from plait.report.card import model_card
from plait.statistics.statistics import Statistics
from plait.training.state import (
    check_state,
    finished_job,
    full_disk,
    is_finished,
    job_key,
    training_state,
)

logger = logging.getLogger("plait")


def merge(
    sources: Mapping[str, Any],
    *,
    out: str | Path,
    method: str | None = None,
    data: Mapping[str, Any] | None = None,
    statistics: Mapping[str, str | Path] | None = None,
    base: str | Path | None = None,
    weights: Mapping[str, float] | None = None,
    tasks: Mapping[str, str] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    merge_pooler: bool = False,
    align_heads: str | None = None,
    align_ridge: float = 1.0,
    refine: int | None = None,
    refine_texts: int = 256,
    refine_on: str = "logits",
    refine_heads: bool = False,
    refine_dropout: bool = False,
    refine_rate: float = 1e-4,
    refine_batch_size: int = 16,
    refine_precision: str = "float32",
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    **options: Any,
) -> Merged:
    """Returns one checkpoint made of several, written to `out`.

    Args:
        sources: name -> checkpoint (folder or Hub id), in order; a value may be a mapping as in a recipe.
        out: the folder to write.
        method: a rule of `plait.methods()`; left open it is chosen by what is given, see docs/merging.md (`fisher`
            where an importance is).
        data: name -> labelled data of that source: a file, a `datasets.Dataset`, or columns.
        statistics: name -> statistics saved by `plait.estimate`, instead of data.
        base: the model the sources were fine-tuned from, for the rules that need it; else found where it is recorded.
        weights: name -> λ, 1 where not given.
        tasks: source name -> task name, for sources that share one task (their heads are merged, aligned by label).
        evaluate: task -> labelled data to score the result and its sources on.
        merge_pooler: merge the poolers too, as Plait 0.1 did, instead of keeping each with its head.
        align_heads: fit each head to the merged encoder on the texts of `data`: `shift`, `ridge` or `none`; default
            `ridge` where the method is left open and every source has texts.
        align_ridge: how strongly `ridge` is held to the states as they are, relative to their mean square.
        refine: passes over texts of `data` in which the merged encoder learns the sources' own answers; labels play no
            part. Default: see docs/merging.md.
        refine_texts: texts of each source for both, a random subset.
        refine_on: what is learned: `logits`, or the `hidden` states that the heads read.
        refine_heads: whether heads are trained too.
        refine_dropout: whether the encoder's dropout is on.
        refine_rate: the highest learning rate.
        refine_batch_size: texts a step.
        refine_precision: `float32`, or `bfloat16` mixed precision.
        dtype: of the output; default that of the sources.
        max_shard_size: such as `5GB`.
        trust_remote_code: whether a source may run its own code; never unless asked.
        overwrite: whether an existing output is replaced, once the new one is complete.
        resume: go on with a refinement that was stopped.
        options: `forward`, `importance`, `mapping`, `labels`, `normalize`, `per`, `examples`, `batch_size`,
            `max_length`, `seed`, and the options of the method. A mapping `labels` says instead what the labels of a
            source's head are called, in its order: `{"sst": ["negative", "positive"]}`.

    Raises:
        PlaitError: anything a user can mend; nothing has been written then.
    """
    judged = {task: entry for task, entry in (evaluate or {}).items() if not is_file(entry)}
    recipe, objects = merge_recipe(
        sources,
        out=out,
        method=method,
        data=data,
        statistics=statistics,
        base=base,
        weights=weights,
        tasks=tasks,
        evaluate={task: entry for task, entry in (evaluate or {}).items() if task not in judged},
        merge_pooler=merge_pooler,
        align_heads=align_heads,
        align_ridge=align_ridge,
        refine=refine,
        refine_texts=refine_texts,
        refine_on=refine_on,
        refine_heads=refine_heads,
        refine_dropout=refine_dropout,
        refine_rate=refine_rate,
        refine_batch_size=refine_batch_size,
        refine_precision=refine_precision,
        dtype=dtype,
        max_shard_size=max_shard_size,
        trust_remote_code=trust_remote_code,
        options=options,
    )
    return run_merge(recipe, data=objects, judged=judged, overwrite=overwrite, resume=resume)


def merge_recipe(
    sources: Mapping[str, Any],
    *,
    out: str | Path,
    method: str | None,
    data: Mapping[str, Any] | None,
    statistics: Mapping[str, str | Path] | None,
    base: str | Path | None,
    weights: Mapping[str, float] | None,
    tasks: Mapping[str, str] | None,
    evaluate: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    **settings: Any,
) -> tuple[MergeRecipe, dict[str, Any]]:
    """Returns the recipe that these arguments of `merge` spell, and the data that lives in memory."""
    named = options["labels"] if isinstance(options.get("labels"), Mapping) else None
    options = {key: value for key, value in options.items() if key != "labels" or named is None}
    described = describe_sources(sources, statistics=statistics, weights=weights, tasks=tasks, labels=named)
    strangers = [name for name in data or {} if name not in described]
    if strangers:
        problems = (f"data for unknown source {name!r}{did_you_mean(name, described)}" for name in strangers)
        raise RecipeError(listed(problems))
    files, objects = split_data(described, data or {})
    # What is left at its default is not recorded as if it had been chosen.
    chosen = {k: v for k, v in settings.items() if v != MergeRecipe.model_fields[k].default}
    content = {
        "sources": {
            n: {**spec, **({"data": files[n]} if n in files else {})} for n, spec in described.items()
        },
        "base": None if base is None else str(base),
        "output": str(out),
        "evaluate": dict(evaluate or {}),
        **chosen,
    }
    recipe = parse_as(MergeRecipe, content, "merge")
    if method is None and not options:
        return recipe, objects
    name = method or ("fisher" if "importance" in options else AUTO)
    return parse_as(MergeRecipe, {**content, "method": {"name": name, **options}}, "merge"), objects


def describe_sources(
    sources: Mapping[str, Any], **extras: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Returns sources as recipe entries, with statistics, weights and tasks put in theirs.

    Raises:
        RecipeError: an extra for a source that does not exist (did you mean).
    """
    if not isinstance(sources, Mapping):
        raise RecipeError(
            f"sources: expected a mapping of name to checkpoint, found {type(sources).__name__}"
        )
    odd = [
        f"{n} is a {type(s).__name__}" for n, s in sources.items() if not isinstance(s, str | Path | Mapping)
    ]
    if odd:
        raise RecipeError(f"{listed(odd)}: expected a folder or a Hub id; save a model in memory first")
    described = {n: dict(s) if isinstance(s, Mapping) else {"model": str(s)} for n, s in sources.items()}
    for kind, values in extras.items():
        key = kind if kind in {"statistics", "labels"} else kind.removesuffix("s")
        for name, value in (values or {}).items():
            if name not in described:
                raise RecipeError(f"{key} for unknown source {name!r}{did_you_mean(name, described)}")
            described[name][key] = str(value) if isinstance(value, Path) else value
    return described


def split_data(
    described: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the data that a recipe can name (files, specifications) and the data that lives in memory."""
    files = {name: value for name, value in data.items() if name in described and is_file(value)}
    return files, {name: value for name, value in data.items() if name not in files}


def run_merge(
    recipe: MergeRecipe,
    *,
    data: Mapping[str, Any] | None = None,
    judged: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Merged:
    """Returns the merge of a recipe; `data` and `judged` are what it has in memory instead of in files."""
    ended = resume and finished_job(recipe.output) is not None
    check_output(recipe, overwrite=overwrite or ended)
    with writing(recipe.output, overwrite=overwrite or ended):
        job = plan(recipe, data, judged)
        if ended and is_finished(recipe.output, identity(job)):
            return Merged(recipe.output)
        check_output(recipe, overwrite=overwrite)
        return _merged(job, overwrite=overwrite, resume=resume)


def _merged(job: Plan, *, overwrite: bool, resume: bool) -> Merged:
    recipe = job.recipe
    logger.info("merging %s with %s", ", ".join(s.name for s in job.sources), told(job))
    statistics = gather(job)
    out = Path(os.path.realpath(recipe.output))
    with (
        training_state(out, keep=True, resume=resume) as state,
        full_disk(out),
        atomic_folder(out, overwrite=overwrite) as folder,
    ):
        if job.forward or job.recipe.refine:
            check_state(state, identity(job))
        digests = write_checkpoint(job, statistics, folder, state)
        manifest = describe_result(job, statistics, digests)
        manifest.write(folder)
        manifest = improve(job, manifest, folder, state, resume=resume)
        agree(folder, manifest.tasks)
        complete(folder, manifest.tasks)
        finish(job, manifest, folder)
    shutil.rmtree(state, ignore_errors=True)
    return Merged(recipe.output)


def told(job: Plan) -> str:
    """Returns what will be done, in a line for the user: much of it may be Plait's own choice."""
    base = job.alignment.base
    parts = [job.rule.name + (f" from the base {base.origin}" if base and "base" in job.rule.inputs else "")]
    if job.recipe.align_heads not in (None, "none"):
        parts.append(f"heads fitted by {job.recipe.align_heads} (--align-heads none for as they are)")
    if job.recipe.refine:
        parts.append(f"up to {job.recipe.refine} passes of refinement (--refine 0 for none)")
    return ", then ".join(parts)


def finish(job: Plan, manifest: Manifest, folder: Path) -> None:
    """Writes manifest and card into the unfinished output, and scores it where there is data for that."""
    manifest.write(folder)
    if job.inputs.judged:
        from plait.api.evaluating import evaluate

        found = evaluate(folder, dict(job.inputs.judged), trust_remote_code=job.recipe.trust_remote_code)
        manifest = replace(manifest, scores={**found.to_dict(), "model": job.recipe.output})
        manifest.write(folder)
    (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")


def describe_result(job: Plan, statistics: Mapping[str, Statistics], digests: Mapping[str, str]) -> Manifest:
    """Returns the manifest of a merge: tasks, sources with digests, the resolved recipe, versions."""
    sources = {
        s.name: {
            "origin": s.origin,
            "revision": s.revision,
            "digest": digests[s.name],
            "architecture": s.architecture,
        }
        for s in job.sources
    }
    if job.alignment.base is not None:
        sources[BASE] = {"origin": job.alignment.base.origin, "digest": job.alignment.base.digest}
    return Manifest(
        tasks={name: describe_task(job, name) for name in job.alignment.tasks},
        sources=sources,
        recipe=job.resolved().model_dump(exclude_none=True, exclude_unset=True, mode="json"),
        versions=versions(),
        statistics={name: found.facts for name, found in statistics.items()},
        job=job_key(identity(job)),
    )


def describe_task(job: Plan, task: str) -> Task:
    """Returns what the manifest says of one task."""
    members = [job.sources[i] for i in job.alignment.tasks[task]]
    first = members[0]
    names = tuple(s.name for s in members)
    return Task(task, first.carried_as, first.kind, first.problem_type, first.labels, names)


def versions() -> dict[str, str]:
    """Returns the versions that decide the numbers."""
    from importlib.metadata import version

    import torch
    import transformers

    import plait

    return {
        "plait": plait.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": version("safetensors"),
        "python": platform.python_version(),
    }


__all__ = ["merge", "run_merge"]
