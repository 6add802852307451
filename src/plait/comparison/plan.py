"""A validated comparison: what will be tried, in which order, what each takes, and what the budget leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from plait.comparison.candidates import SEPARATE, Candidate, candidates_of
from plait.comparison.cells import Cells, Keys
from plait.comparison.estimates import Cost, Estimator, described
from plait.comparison.material import NOTHING, InMemory, gather
from plait.comparison.situation import Situation, check_possible, quiet, situation_of
from plait.errors import RecipeError
from plait.recipe import CompareRecipe
from plait.training.trainer import check_tracker


@dataclass(frozen=True)
class ComparisonPlan:
    """What will be tried."""

    situation: Situation
    candidates: tuple[Candidate, ...]
    estimator: Estimator

    @property
    def recipe(self) -> CompareRecipe:
        """Returns the recipe."""
        return self.situation.recipe

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """Returns what each candidate that is possible will take."""
        return {c.id: self.estimator.cost(c) for c in self.candidates if c.reason is None}

    @cached_property
    def keys(self) -> Keys:
        """Returns the digests of what decides each candidate."""
        return Keys(self.situation)

    @property
    def cells(self) -> Cells:
        """Returns where finished work lies."""
        return Cells(self.situation.folder / "cells")

    def left_out(self, candidate: Candidate, spent: float, pace: float = 1.0) -> str | None:
        """Returns why a candidate is not tried; None where it is.

        Args:
            candidate: one of them.
            spent: seconds that have gone, or will have.
            pace: what work has taken so far relative to its estimate.
        """
        if candidate.reason is not None:
            return candidate.reason
        if candidate.id == SEPARATE:
            return None
        takes, budget = self.costs[candidate.id].seconds * pace, self.recipe.seconds
        if budget is None:
            return None if candidate.default else (
                f"left out by default, it takes about {time_told(takes)}: give a --budget, or "
                f"name it with --methods {candidate.method}"
            )
        if spent + takes <= budget:
            return None
        left = max(0.0, budget - spent)
        return f"takes about {time_told(takes)}, and {time_told(left)} of the budget of {self.recipe.budget} are left"

    def chosen(self) -> dict[str, str | None]:
        """Returns by candidate why it will not be tried, None where it will: as far as estimates can tell."""
        spent, found = self.costs[SEPARATE].seconds, {}
        for candidate in self.candidates:
            found[candidate.id] = self.left_out(candidate, spent)
            if found[candidate.id] is None and candidate.id != SEPARATE:
                spent += self.costs[candidate.id].seconds
        return found

    def describe(self) -> dict[str, Any]:
        """Returns the plan as plain data."""
        material, chosen = self.situation.material, self.chosen()
        tried = [name for name, reason in chosen.items() if reason is None]
        return {
            "combine": "compare",
            "sources": {
                s.name: {"model": s.origin, "architecture": s.architecture, "labels": list(s.labels or ())}
                for s in material.sources
            },
            "base": None if self.situation.base is None else self.situation.base.origin,
            "tests": {
                t.name: {"rows": len(t.rows), "metric": t.metric, "from": t.origin, "also_in_the_data": t.overlap}
                for t in material.tests
            },
            "possible": {w.name: ("" if w.possible else "no: ") + w.reason for w in self.situation.ways},
            "candidates": [self._told(candidate, chosen[candidate.id]) for candidate in self.candidates],
            "estimated_seconds": round(sum(self.costs[name].seconds for name in tried)),
            "budget": self.recipe.budget,
            "notes": list(material.notes),
            "output": self.recipe.output,
        }  # fmt: skip

    def _told(self, candidate: Candidate, reason: str | None) -> dict[str, Any]:
        cost = self.costs.get(candidate.id)
        return {
            "candidate": candidate.id,
            "what": candidate.title,
            "tried": reason is None,
            **({} if reason is None else {"why": reason}),
            **({} if cost is None else described(cost)),
        }


def planned(recipe: CompareRecipe, given: InMemory = NOTHING) -> ComparisonPlan:
    """Returns the validated plan of a comparison; reads headers, configurations, tokenizers and rows.

    Raises:
        PlaitError: anything that would stop it before its first computation.
    """
    check_tracker(recipe.report_to)
    material = gather(recipe, given)
    situation = situation_of(recipe, material)
    check_possible(situation)
    with quiet():
        found = candidates_of(situation)
    job = ComparisonPlan(situation, tuple(found), Estimator(situation))
    check_budget(job)
    return job


def check_budget(job: ComparisonPlan) -> None:
    """Raises `RecipeError` where the budget is too small for anything; says what the cheapest costs."""
    budget = job.recipe.seconds
    others = [c for c in job.candidates if c.reason is None and c.id != SEPARATE]
    if budget is None or not others:
        return
    cheapest = min(others, key=lambda c: job.costs[c.id].seconds)
    least = job.costs[SEPARATE].seconds + job.costs[cheapest.id].seconds
    if budget < least and not finished(job, [job.candidates[0], *others]):
        raise RecipeError(
            f"budget {job.recipe.budget} is too small for anything: scoring the sources and the cheapest candidate, "
            f"{cheapest.id}, takes about {time_told(least)}"
        )


def finished(job: ComparisonPlan, candidates: Sequence[Candidate]) -> bool:
    """Says whether any of some candidates has been scored before."""
    return any(job.cells.find(job.keys.scored(candidate)) is not None for candidate in candidates[1:])


def time_told(seconds: float) -> str:
    """Returns seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
