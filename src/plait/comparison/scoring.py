"""Cells: one candidate made, scored and measured, with all that the answer wants to know of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint
from plait.comparison.answers import OF_WAY, EveryHead, Outcomes, Reading, Sources
from plait.comparison.candidates import SEPARATE, Candidate
from plait.comparison.cells import Cell, hashed
from plait.comparison.making import make
from plait.comparison.measures import calibration, latency, machine, size_of, size_of_sources
from plait.comparison.plan import ComparisonPlan
from plait.data import Examples
from plait.ensembles.answers import saved_logits
from plait.ensembles.diversity import diversity
from plait.ensembles.saved import SavedEnsemble
from plait.errors import DataError
from plait.evaluation import outcome_scores
from plait.evaluation.outcome import LEVEL, RowSums, resampled
from plait.merging.merged import Merged
from plait.reports.record import report_of

logger = logging.getLogger("plait")
TOGETHER = "ensemble/separate"


@dataclass(frozen=True)
class Scorer:
    """Makes and scores the candidates of a plan."""

    job: ComparisonPlan
    sources: Sources
    _latencies: dict[str, dict[str, float]] = field(default_factory=dict)

    def cell(self, candidate: Candidate) -> Cell:
        """Returns a candidate's cell.

        Raises:
            PlaitError: it cannot be made or scored.
        """
        if candidate.id in (SEPARATE, TOGETHER):
            apart = candidate.id == SEPARATE
            outcomes = self.sources.apart() if apart else self.sources.together()
            facts = {**self.cost_of_sources(), "seconds": 0.0, "folder": None}
            facts |= {} if apart else {"diversity": self.diversity()}
            return self.filled(candidate, outcomes, facts)
        seconds = make(self.job, candidate)
        folder = self.job.situation.folder / candidate.folder
        outcomes = OF_WAY[candidate.way](folder, self.job.situation.material, self.reading)
        parameters, size = size_of(folder)
        facts = {
            "seconds": round(seconds, 2), "folder": candidate.folder, "parameters": parameters, "bytes": size,
            "latency": self.latency_of(candidate, folder), **told_by(folder, candidate),
        }  # fmt: skip
        return self.filled(candidate, outcomes, facts)

    @property
    def reading(self) -> Reading:
        """Returns how texts are read."""
        return self.sources.reading

    def filled(self, candidate: Candidate, outcomes: Outcomes, facts: Mapping[str, Any]) -> Cell:
        """Returns the cell of what a candidate answered."""
        tests = self.job.situation.material.tests
        sums = {test.name: row_sums(outcomes[test.name], test.metric) for test in tests}
        scores = {
            test.name: {
                "metric": test.metric,
                "value": outcome_scores(outcomes[test.name])[test.metric],
                **dict(zip(("low", "high"), interval(sums[test.name], self.job.recipe.seed), strict=True)),
            }
            for test in tests
        }
        bins = {name: found for name, outcome in outcomes.items() if (found := calibration(outcome)) is not None}
        return Cell({"id": candidate.id, "scores": scores, "calibration": bins, **facts}, sums)

    def cost_of_sources(self) -> dict[str, Any]:
        """Returns what all sources together take: of the disk, and for a text that all of them answer."""
        every = self.job.situation.material.sources
        parameters, size = size_of_sources(every)
        found = [self.latency_of_source(source) for source in every]
        return {
            "parameters": parameters, "bytes": size,
            "latency": {at: sum(one[at] for one in found) for at in ("1", "32")},
        }  # fmt: skip

    def latency_of_source(self, source: Checkpoint) -> dict[str, float]:
        """Returns the seconds per text of one source."""
        key = [source.architecture, source.config.to_dict().get("num_hidden_layers"), shapes_of(source)]
        return self.timed(key, source.model, source.tokenizer)

    def latency_of(self, candidate: Candidate, folder: Path) -> dict[str, float]:
        """Returns the seconds per text in which a candidate answers all tasks; models of one form are timed once."""
        if candidate.way == "merge":
            merged = Merged(folder)
            first = self.job.situation.material.sources[0]
            alike = all(merged.about(task).kind == "sequence_classification" for task in merged.tasks)
            if len(merged.tasks) == 1 or not alike:  # beside the encoder heads take no time
                return self.latency_of_source(first)
            key = ["heads", len(merged.tasks), shapes_of(first)]
            return self.timed(key, lambda: EveryHead(merged), lambda: merged.tokenizer)
        if candidate.way == "ensemble" and not (saved := SavedEnsemble(folder)).plain:
            told: dict[str, Any] = {"batch_size": 32, "max_length": self.reading.max_length}
            return latency(lambda rows: saved_logits(saved, rows, **told), self.texts)
        return self.latency_of_source(open_checkpoint(folder))

    def timed(self, key: Any, model: Callable[[], Any], tokenizer: Callable[[], Any]) -> dict[str, float]:
        """Returns the seconds per text of a model, as they were measured before for one of its form."""
        name = f"latency-{hashed([key, dict(machine()), self.texts.fingerprint, self.reading.max_length])}"
        if name not in self._latencies:
            noted = self.job.cells.note(name)
            if noted is None:
                network, words = model(), tokenizer()
                noted = latency(lambda rows: self.reading.passed(network, words, rows), self.texts)
                self.job.cells.write_note(name, noted)
            self._latencies[name] = {at: float(value) for at, value in noted.items()}
        return self._latencies[name]

    @property
    def texts(self) -> Examples:
        """Returns the texts that are timed: of the first test."""
        return self.job.situation.material.tests[0].rows.unlabelled()

    def diversity(self) -> dict[str, Any] | None:
        """Returns how much the sources differ as members of one ensemble; None for words."""
        tests = [t for t in self.job.situation.material.tests if t.rows.kind == "sequence_classification"]
        found = []
        for test in tests:
            logits = torch.stack(self.sources.members(test), 1)
            labels = None if test.problem == "regression" else torch.tensor([
                list(label) if isinstance(label, tuple) else label for label in test.rows.labels or ()
            ])  # fmt: skip
            found.append(diversity(logits, labels, test.problem))  # type: ignore[arg-type]
        if not found:
            return None
        names = found[0].keys()
        mean = {name: float(np.mean([one[name] for one in found])) for name in names}
        return {"members": len(self.job.situation.material.sources), **mean}


def row_sums(outcome: Any, metric: str) -> RowSums:
    """Returns what rows add to a score.

    Raises:
        DataError: a score that is no function of sums over rows.
    """
    found: RowSums | None = outcome.row_sums(metric)
    if found is None:
        raise DataError(f"{outcome.examples.source}: {metric} cannot be compared row by row")
    return found


def interval(sums: RowSums, seed: int) -> tuple[float | None, float | None]:
    """Returns the ends of a score's bootstrap interval; None where there are too few rows."""
    if len(sums.rows) < 2:
        return None, None
    low, high = np.nanquantile(resampled([sums], seed=seed)[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def shapes_of(source: Checkpoint) -> list[Any]:
    """Returns what makes two models equally fast: the shapes of their encoders, and dtypes."""
    headers = {name: source.header(stored) for name, stored in source.body.items()}
    return sorted((name, list(header.shape), str(header.dtype)) for name, header in headers.items())


def told_by(folder: Path, candidate: Candidate) -> dict[str, Any]:
    """Returns what a candidate's own record says: losses, who taught what."""
    if candidate.way == "merge":
        manifest = Merged(folder).manifest
        return {"history": history_of(manifest.refinement.get("by_pass", []))}
    report = report_of(folder)
    found: dict[str, Any] = {"history": history_of(report.get("losses") or report.get("epochs", []))}
    if candidate.way == "amalgamate":
        found["routing"] = routing_of(report)
    return found


def history_of(epochs: Any) -> list[dict[str, Any]]:
    """Returns numbers of a training by epoch, one a row."""
    rows = [epoch for epoch in epochs if isinstance(epoch, Mapping)] if isinstance(epochs, list | tuple) else []
    return [
        {"epoch": epoch.get("epoch", at + 1), "name": name, "value": float(value)}
        for at, epoch in enumerate(rows)
        for name, value in epoch.items()
        if name not in ("epoch", "step", "member") and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def routing_of(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns which teacher taught which label how often, as shares of a label's texts."""
    labels = report.get("who_taught_what", {}).get("labels") or {}
    teachers = list(report.get("teachers", {}))
    if not labels:
        return None
    rows = [[float(taught.get(teacher, 0)) for teacher in teachers] for taught in labels.values()]
    share = [[value / (sum(row) or 1.0) for value in row] for row in rows]
    return {"labels": list(labels), "teachers": teachers, "share": share}
