"""A comparison, stage by stage: plan, make and score what fits, answer, write."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass, field
from typing import Any

from plait.checkpoints.output import one_writer
from plait.comparison.answers import Reading, Sources
from plait.comparison.candidates import SEPARATE, Candidate
from plait.comparison.cells import Cell
from plait.comparison.estimates import described
from plait.comparison.files import check_folder, is_whole, note_begun, write_answer
from plait.comparison.insight import conflicts, importance
from plait.comparison.making import holds, make, write_data
from plait.comparison.material import NOTHING, InMemory
from plait.comparison.plan import ComparisonPlan, planned, time_told
from plait.comparison.result import Comparison
from plait.comparison.scoring import Scorer
from plait.comparison.summary import Tried, summary_of
from plait.errors import one_line
from plait.recipe import CompareRecipe
from plait.reports.trackers import track

logger = logging.getLogger("plait")


def run_comparison(recipe: CompareRecipe, given: InMemory = NOTHING, *, overwrite: bool = False) -> Comparison:
    """Returns the comparison of a recipe, written to its `output`; finished work that lies there is used.

    Args:
        recipe: what to compare.
        given: rows and texts in memory.
        overwrite: whether what lies there is forgotten first.

    Raises:
        PlaitError: anything a user can mend. A candidate that fails stops nobody: its row says why.
    """
    start = time.monotonic()
    check_folder(recipe, overwrite=overwrite)
    with one_writer(recipe.output):
        job = planned(recipe, given)
        check_folder(recipe, overwrite=overwrite, job=job)
        if overwrite:
            forget(job)
        key = job.keys.whole(list(job.candidates))
        if is_whole(job.situation.folder, key):
            logger.info("%s is finished: nothing that decides it has changed", recipe.output)
            return Comparison(job.situation.folder)
        note_begun(job)
        write_data(job.situation)
        tried = Trial(job, start).every()
        found = summary_of(job, tried, seconds=time.monotonic() - start)
        found |= {"importance": importance(job, left(job, start)), "conflicts": conflicts(job)}
        keep_models(job, found)
        write_answer(job, found, key)
        if recipe.report_to != "none":
            track(found, recipe.report_to, job.situation.folder)
    return Comparison(job.situation.folder)


def left(job: ComparisonPlan, start: float) -> float | None:
    """Returns the seconds of the budget that are left; None without one."""
    budget = job.recipe.seconds
    return None if budget is None else max(0.0, budget - (time.monotonic() - start))


def forget(job: ComparisonPlan) -> None:
    """Removes what an earlier comparison left in the folder."""
    for name in ("cells", "candidates", "recipes", "figures", "data", "posteriors"):
        shutil.rmtree(job.situation.folder / name, ignore_errors=True)


@dataclass
class Trial:
    """Candidates tried one after another, within a budget."""

    job: ComparisonPlan
    start: float
    expected: float = 0.0
    spent: float = 0.0
    best: dict[str, tuple[float, Candidate]] = field(default_factory=dict)

    def every(self) -> list[Tried]:
        """Returns what became of each candidate."""
        recipe = self.job.recipe
        scorer = Scorer(self.job, Sources(self.job.situation.material, Reading(recipe.batch_size, recipe.max_length)))
        self.announce()
        return [self.one(scorer, at, candidate) for at, candidate in enumerate(self.job.candidates, 1)]

    def announce(self) -> None:
        """Says how many candidates will be tried, and how long that takes."""
        chosen = self.job.chosen()
        due = [c for c in self.job.candidates if chosen[c.id] is None and not self.finished(c)]
        seconds = sum(self.job.costs[c.id].seconds for c in due)
        logger.info(
            "%d candidates, %d of them to be tried now: about %s", len(chosen), len(due), time_told(seconds)
        )

    def finished(self, candidate: Candidate) -> Cell | None:
        """Returns a candidate's cell where it is finished."""
        return self.job.cells.find(self.job.keys.scored(candidate))

    @property
    def pace(self) -> float:
        """Returns what work took so far relative to its estimate; sources alone say little."""
        return self.spent / self.expected if self.expected else 1.0

    def one(self, scorer: Scorer, at: int, candidate: Candidate) -> Tried:
        """Returns what became of one candidate."""
        cost = self.job.costs.get(candidate.id)
        told = {} if cost is None else dict(described(cost))
        if candidate.reason is None and (cell := self.finished(candidate)) is not None:
            self.prune(candidate, cell)
            return Tried(candidate, "done", cell=cell, told=told)
        if reason := self.job.left_out(candidate, time.monotonic() - self.start, self.pace):
            return Tried(candidate, "skipped", reason, told=told)
        begin = time.monotonic()
        try:
            cell = scorer.cell(candidate)
        except Exception as error:
            if candidate.id == SEPARATE:  # nothing can be said without it
                raise
            logger.warning("%s failed: %s", candidate.id, one_line(error))
            return Tried(candidate, "failed", one_line(error, 600), told=told)
        self.job.cells.keep(self.job.keys.scored(candidate), cell)
        self.note(at, candidate, time.monotonic() - begin)
        self.prune(candidate, cell)
        return Tried(candidate, "done", cell=cell, told=told)

    def note(self, at: int, candidate: Candidate, seconds: float) -> None:
        """Says that a candidate is finished, and learns how fast this machine is."""
        self.spent += seconds
        self.expected += self.job.costs[candidate.id].seconds
        logger.info("%d/%d %s: %s", at, len(self.job.candidates), candidate.id, time_told(seconds))

    def prune(self, candidate: Candidate, cell: Cell) -> None:
        """Removes the model of the worse of two merges: they are as large and as fast, and made again in a moment."""
        if self.job.recipe.keep == "all" or candidate.way != "merge":
            return
        scores = [score["value"] for score in cell.row["scores"].values()]
        mean, before = sum(scores) / len(scores), self.best.get(candidate.way)
        worse = candidate if before is not None and before[0] >= mean else before[1] if before else None
        if worse is not candidate:
            self.best[candidate.way] = (mean, candidate)
        if worse is not None:
            shutil.rmtree(self.job.situation.folder / worse.folder, ignore_errors=True)


def keep_models(job: ComparisonPlan, found: dict[str, Any]) -> None:
    """Makes the recommended model again where it is not there any more."""
    chosen = found["recommended"]["id"] if found["recommended"] else None
    for candidate in (c for c in job.candidates if c.id == chosen and c.id != SEPARATE):
        if candidate.recipe is not None:
            make(job, candidate)
    for row in found["candidates"]:
        candidate = next(c for c in job.candidates if c.id == row["id"])
        row["folder"] = candidate.folder if holds(job, candidate) else None


