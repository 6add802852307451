"""What is said of a merge: a line before, a record after; apart, so that what writes it stays readable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait.checkpoints.lineage import lineage
from plait.merging.plan import Plan
from plait.merging.refinement.run import identity
from plait.reports.record import BASE, Manifest, Task, origin_beside, versions
from plait.statistics.importance import Statistics
from plait.training.state import job_key


def summary_of(job: Plan) -> str:
    """Returns what will be done, in a line for the user: much of it may be Plait's own choice."""
    base = job.alignment.base
    parts = [job.rule.name + (f" from the base {base.origin}" if base and "base" in job.rule.inputs else "")]
    if job.recipe.align_heads not in (None, "none"):
        parts.append(f"heads fitted by {job.recipe.align_heads} (--align-heads none for as they are)")
    if job.recipe.search:
        parts[0] += f", its numbers searched in {job.recipe.search} trials"
    if job.recipe.refine:
        parts.append(f"up to {job.recipe.refine} passes of refinement (--refine 0 for none)")
    return ", then ".join(parts)


def describe_result(job: Plan, statistics: Mapping[str, Statistics], digests: Mapping[str, str]) -> Manifest:
    """Returns the manifest of a merge: tasks, sources with digests, the resolved recipe, versions."""
    sources = {
        s.name: {
            "origin": origin_beside(s.origin, job.recipe.output),
            "revision": s.revision,
            "digest": digests[s.name],
            "architecture": s.architecture,
            **lineage(s.origin, s.folder, s.recorded_base),
        }
        for s in job.sources
    }
    if job.alignment.base is not None:
        sources[BASE] = {
            "origin": origin_beside(job.alignment.base.origin, job.recipe.output), "digest": job.alignment.base.digest,
        }  # fmt: skip
    return Manifest(
        tasks={name: describe_task(job, name) for name in job.alignment.tasks},
        sources=sources,
        recipe=recorded(job),
        versions=versions(),
        statistics={name: found.facts for name, found in statistics.items()},
        job=job_key(identity(job)),
    )


def recorded(job: Plan) -> dict[str, Any]:
    """Returns the recipe as the manifest keeps it."""
    return job.resolved().model_dump(exclude_none=True, exclude_unset=True, mode="json")


def describe_task(job: Plan, task: str) -> Task:
    """Returns what the manifest says of one task."""
    members = [job.sources[i] for i in job.alignment.tasks[task]]
    first = members[0]
    names = tuple(s.name for s in members)
    return Task(task, first.carried_as, first.kind, first.problem_type, first.labels, names)
