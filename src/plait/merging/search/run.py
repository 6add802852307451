"""The search itself: ask for candidates, merge several in one pass, score them, tell; then the best as a plan."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.errors import DataError, MergeError, OutputError, PlaitError, first_line
from plait.evaluation import outcome_of
from plait.evaluation.outcome import RowSums
from plait.evaluation.relative import ratio, unmeasured
from plait.evaluation.scores import primary_of
from plait.merging.merged import Merged
from plait.merging.rule import Law, laws
from plait.merging.scores import by_name
from plait.merging.search.space import WEIGHT, Axis, space_of, with_values
from plait.merging.search.study import SCORES, Study, file_url, open_study, settled, summary, wait_for_others
from plait.progress import task
from plait.reports.record import Task
from plait.training.state import job_key

if TYPE_CHECKING:
    from plait.data import Examples
    from plait.merging.plan import Plan

logger = logging.getLogger("plait")

Write = Callable[[Sequence["Plan"], Sequence[Path]], None]
"""Writes merges that differ in options and weights alone into a folder each, in one pass over the sources."""
WEIGHED = {"weight", "layer_weights"}
ROOM = 8e9
"""Bytes on disk that candidates of one pass may take together."""


@dataclass(frozen=True)
class Judge:
    """What candidates are scored by: rows of each task, and what the best source adds to its score there."""

    rows: Mapping[str, Examples]
    tasks: Mapping[str, Task]
    sources: Mapping[str, RowSums]

    def score(self, merged: Merged, name: str) -> float:
        """Returns a candidate's score on one task relative to the source's.

        Raises:
            DataError: it is no number.
        """
        sums = answered(merged.task(name), merged.tokenizer_of(name), self.rows[name], self.tasks[name])
        found = float(ratio(sums.value, self.sources[name].value, falling=self.sources[name].falling))
        if not np.isfinite(found):
            raise DataError(f"task {name}: the score is {sums.value}, not a number")
        return found


def answered(model: Any, tokenizer: Any, rows: Examples, about: Task) -> RowSums:
    """Returns what a model's answers add to the score of a task.

    Raises:
        DataError: the task's score cannot be added up.
    """
    outcome = outcome_of(model, tokenizer, rows)
    sums = outcome.row_sums(primary_of(about.kind, about.problem_type))
    assert sums is not None  # every primary metric is a function of sums
    return sums


def judge_of(job: Plan, tasks: Mapping[str, Task]) -> Judge:
    """Returns what candidates are scored by; sources that score nothing themselves are left out, and named.

    Raises:
        DataError: no source scores clearly above zero on any task.
    """
    opened = {source.name: source for source in job.sources}
    sums: dict[str, RowSums] = {}
    with task("scoring the sources on validation rows", len(job.inputs.split.rows)) as tick:
        for name, rows in job.inputs.split.rows.items():
            about = tasks[name]
            named = by_name(rows, about)
            every = [answered(opened[s].model(), opened[s].tokenizer(), named, about) for s in about.sources]
            sums[name] = max(every, key=lambda one: one.value)
            tick(1)
    left_out = unmeasured(sums, seed=job.method.seed)
    for said in left_out.values():
        logger.warning("%s", said)
    known = {name: one for name, one in sums.items() if name not in left_out}
    if not known:
        raise DataError(
            "--search: no source scores clearly above zero on its validation rows, so nothing can be said relative to "
            "them: give more rows, or check their labels"
        )
    return Judge({name: job.inputs.split.rows[name] for name in known}, tasks, known)


def search(
    job: Plan, tasks: Mapping[str, Task], write: Write, state: Path
) -> tuple[Plan, dict[str, Any]]:
    """Returns the plan of the merge with the best options and weights found, and the record of the search.

    Candidates are scored by their mean score relative to the sources on validation rows. The first is the method with
    its defaults, so that what is found is no worse on these rows. Where a rule works entry by entry, several are merged
    in one pass over the weights. After each task a candidate that is among the worst quarter so far is given up.

    Args:
        job: the plan, with what is searched left out.
        tasks: what is known of each task.
        write: writes candidates.
        state: a folder for the study, where the recipe names no database, and for candidates.

    Raises:
        MergeError: every trial failed.
    """
    axes = space_of(job)
    judge = judge_of(job, tasks)
    url = job.recipe.storage or file_url(state)
    study = open_study(url, f"plait-{job_key(subject(job, axes))}", axes, job.method.seed)
    wanted = job.recipe.search or 0
    done = trials_of(Bench(job, study, judge, write, state / "candidates"), wanted)
    best = best_of(done)
    values = study.values(best)
    found = {**summary(done, best, values), "validation": validation_of(job, judge), "database": url.partition(":")[0]}
    logger.info(
        "the best of %d trials keeps %.1f %% of the sources on validation rows%s: %s", len(done), 100 * best.value,
        "" if found["defaults"] is None else f" (defaults {100 * found['defaults']:.1f} %)", spoken(values),
    )  # fmt: skip
    return with_values(job, values), found


@dataclass(frozen=True)
class Bench:
    """Where candidates are made and scored."""

    job: Plan
    study: Study
    judge: Judge
    write: Write
    folder: Path


def trials_of(bench: Bench, wanted: int) -> list[Any]:
    """Returns finished trials, as many as wanted: those of the study, and what was still missing."""
    study, folder, size = bench.study, bench.folder, batch_size(bench.job)
    shutil.rmtree(folder, ignore_errors=True)
    with task(f"searching {', '.join(axis.name for axis in study.axes)}", wanted) as tick:
        ticked = 0
        while (done := settled(every := study.trials(), wanted)) is None:
            states = [t.state.name for t in every]
            finished = len([s for s in states if s not in {"RUNNING", "WAITING"}]) - dropped(every)
            tick(min(finished, wanted) - ticked)
            ticked = min(finished, wanted)
            missing = wanted - finished - states.count("RUNNING")
            if missing <= 0:
                wait_for_others()
                continue
            batch = [study.ask() for _ in range(min(size, missing))]
            try:
                with study.alive(batch), scratch(folder):
                    try_out(bench, batch)
            except BaseException:
                for trial in batch:
                    study.fail(trial, None)
                raise
        tick(wanted - ticked)
    return done


def dropped(trials: Sequence[Any]) -> int:
    """Returns how many trials died with their process and are made up for."""
    return sum(t.state.name == "FAIL" and not t.user_attrs.get("reason") for t in trials)


def try_out(bench: Bench, batch: Sequence[Any]) -> None:
    """Merges and scores a batch of trials; one that fails says why and stops no other."""
    study, judge, write = bench.study, bench.judge, bench.write
    plans = [with_values(bench.job, study.values(trial)) for trial in batch]
    places = [bench.folder / str(trial.number) for trial in batch]
    whole = len(batch) > 1 and failure(partial(write, plans, places)) is None
    for trial, plan, place in zip(batch, plans, places, strict=True):
        if not whole:  # again by itself: the others of a batch are not to blame
            shutil.rmtree(place, ignore_errors=True)
        problem = None if whole else failure(partial(write, [plan], [place]))
        problem = problem or failure(partial(score_trial, study, trial, judge, place))
        if problem is not None:
            logger.warning("trial %d (%s) fails: %s", trial.number, spoken(study.values(trial)), problem)
            study.fail(trial, problem)
        shutil.rmtree(place, ignore_errors=True)


def failure(work: Callable[[], None]) -> str | None:
    """Returns why a candidate cannot be had, None where it can; a disk that is full is nobody's fault."""
    try:
        work()
    except OutputError:
        raise
    except PlaitError as problem:
        # Candidates lie in a folder that is gone when this is read, and nobody can train them again.
        said = re.sub(r"\S*/candidates/\d+/", "", first_line(problem))
        return said.partition(": its weights are damaged")[0]
    return None


def score_trial(study: Study, trial: Any, judge: Judge, folder: Path) -> None:
    """Scores a candidate task by task and ends its trial: with its mean, or early where it is among the worst."""
    merged = Merged(folder)
    scores: dict[str, float] = {}
    for step, name in enumerate(judge.rows):
        scores[name] = judge.score(merged, name)
        trial.set_user_attr(SCORES, dict(scores))
        trial.report(float(np.mean(list(scores.values()))), step)
        if len(scores) < len(judge.rows) and trial.should_prune():
            study.prune(trial)
            return
    study.tell(trial, float(np.mean(list(scores.values()))))


def best_of(done: Sequence[Any]) -> Any:
    """Returns the finished trial with the highest score, the first of equals.

    Raises:
        MergeError: none has one.
    """
    scored = [trial for trial in done if trial.state.name == "COMPLETE"]
    if not scored:
        reasons = list(dict.fromkeys(str(t.user_attrs.get("reason")) for t in done))
        raise MergeError(f"--search: all {len(done)} trials failed: {reasons[0]}")
    return max(scored, key=lambda trial: (trial.value, -trial.number))


def batch_size(job: Plan) -> int:
    """Returns how many candidates are merged in one pass: several where the rule works entry by entry, and they fit."""
    if Law.ELEMENTWISE not in laws(job.rule) or job.forward:
        return 1
    return max(1, min(job.recipe.search_batch, int(ROOM / max(job.megabytes() * 1e6, 1.0))))


def subject(job: Plan, axes: Sequence[Axis]) -> dict[str, Any]:
    """Returns what must be the same for two searches to share trials."""
    recipe = job.recipe
    return {
        "method": job.method.model_dump(mode="json"),
        "forward": job.forward,
        "axes": [[axis.name, axis.low, axis.high, axis.start] for axis in axes],
        "weights": {n: s.model_dump(mode="json", include=WEIGHED) for n, s in recipe.sources.items()},
        "tasks": recipe.tasks(),
        "dtype": recipe.dtype,
        "merge_pooler": recipe.merge_pooler,
        "digests": {source.name: source.digest for source in job.sources},
        "base": None if job.alignment.base is None else job.alignment.base.digest,
        "examples": {name: rows.fingerprint for name, rows in job.inputs.examples.items()},
        "statistics": {name: str(found.facts) for name, found in job.inputs.statistics.items()},
        "validation": {name: rows.fingerprint for name, rows in job.inputs.split.rows.items()},
    }


def validation_of(job: Plan, judge: Judge) -> dict[str, dict[str, Any]]:
    """Returns by task the rows searched on: how many, where from, and whether they counted."""
    split = job.inputs.split
    return {
        name: {
            "rows": len(rows), "from": split.origin[name], "fingerprint": rows.fingerprint,
            "source_score": judge.sources[name].value if name in judge.sources else None,
        }
        for name, rows in split.rows.items()
    }  # fmt: skip


def spoken(values: Mapping[str, float]) -> str:
    """Returns values as the command line takes them."""
    return " ".join(
        f"--weight {name.removeprefix(WEIGHT)}={value!r}" if name.startswith(WEIGHT) else f"--set {name}={value!r}"
        for name, value in values.items()
    )


@contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """Keeps a folder for candidates while inside."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def describe(job: Plan) -> dict[str, Any]:
    """Returns what a search would do, as plain data."""
    axes = space_of(job)
    return {
        "trials": job.recipe.search,
        "varied": {
            axis.name: f"{axis.low:g} to {axis.high:g}{', logarithmic' if axis.logarithmic else ''}" for axis in axes
        },
        "validation": {
            name: f"{len(rows)} rows: {job.inputs.split.origin[name]}" for name, rows in job.inputs.split.rows.items()
        },
        "per_pass": batch_size(job),
    }
