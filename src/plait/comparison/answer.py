"""What a comparison answers: which candidates no other beats in everything, and which one to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from plait.evaluation.relative import Relative, difference

Prefer = Literal["accuracy", "size", "speed", "calibration"]
SEPARATE = "separate"
ACCEPTABLE = 0.9
"""Mean relative score that a recommended model keeps at least."""
ACCEPTABLE_WORST = 0.75
"""Relative score that a recommended model keeps on its worst task."""
NEAR: Mapping[Prefer, float] = {"accuracy": 1.25, "size": 1.01, "speed": 1.05, "calibration": 1.05}
"""Factor on the least cost within which costs count as equal: file sizes differ by headers, timings by the weather."""


@dataclass(frozen=True)
class Standing:
    """What one candidate reached and costs; None where it was not measured.

    Attributes:
        name: its id, `separate` for the sources as they are.
        relative: scores relative to the sources.
        parameters: count of numbers.
        bytes: on disk.
        latency: seconds per text at batch size 1, median.
        seconds: to make it.
        calibration: mean expected calibration error over tasks.
    """

    name: str
    relative: Relative
    parameters: float | None = None
    bytes: float | None = None
    latency: float | None = None
    seconds: float | None = None
    calibration: float | None = None

    @property
    def worst(self) -> float | None:
        """Returns the relative score on the worst task."""
        return None if self.relative.worst is None else self.relative.tasks[self.relative.worst].value

    def cost(self, prefer: Prefer) -> float:
        """Returns what a user of this preference wants little of; infinite where it was not measured."""
        found = {"size": self.bytes, "speed": self.latency, "calibration": self.calibration}.get(prefer, self.bytes)
        return float("inf") if found is None or not np.isfinite(found) else float(found)


@dataclass(frozen=True)
class Recommendation:
    """The candidate to take, why in one sentence, what was preferred, the best by score and all level with it."""

    name: str | None
    reason: str
    prefer: Prefer
    best: str | None = None
    level_with: tuple[str, ...] = ()


def pareto(rows: Sequence[Sequence[float]]) -> list[int]:
    """Returns the places of the rows that no other row dominates, where more is better in every column.

    A row dominates another when it is nowhere less and somewhere more; equal rows stay both. NaN counts as −∞.
    """
    table = np.nan_to_num(np.asarray(rows, dtype=np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    return [
        at
        for at, row in enumerate(table)
        if not ((table >= row).all(1) & (table > row).any(1)).any()
    ]


def front(standings: Sequence[Standing]) -> list[str]:
    """Returns the candidates that no other beats in mean relative score, worst task, size, latency and seconds."""
    rows = [
        [
            _known(s.relative.mean), _known(s.worst),
            *(-_known(v, np.inf) for v in (s.parameters, s.bytes, s.latency, s.seconds)),
        ]
        for s in standings
    ]  # fmt: skip
    return [standings[at].name for at in pareto(rows)]


def best_of(standings: Sequence[Standing]) -> Standing | None:
    """Returns the candidate with the highest mean relative score, the sources themselves aside; the first of equals."""
    ranked = [s for s in standings if s.name != SEPARATE and s.relative.mean is not None]
    return max(ranked, key=lambda s: _known(s.relative.mean), default=None)


def level_with(one: Standing, standings: Sequence[Standing]) -> list[Standing]:
    """Returns the candidates whose difference to one is smaller than its interval, that one and the sources aside."""
    pairs = [(s, difference(one.relative, s.relative)) for s in standings if s.name not in (one.name, SEPARATE)]
    return [s for s, apart in pairs if apart is not None and apart.level]


def recommend(
    standings: Sequence[Standing],
    prefer: Prefer = "accuracy",
    *,
    acceptable: float = ACCEPTABLE,
    acceptable_worst: float = ACCEPTABLE_WORST,
) -> Recommendation:
    """Returns which candidate to take.

    Of the candidates that keep enough of the sources' scores, in the mean and on the worst task, the best is found and
    all that are level with it. Of these it is the one with the highest mean among the cheapest by what the user
    prefers: size on disk (accuracy takes up to a quarter more than the smallest), seconds per text, or calibration
    error. The sources as they are win only when no candidate keeps enough.

    Args:
        standings: what each candidate reached and costs, the sources as they are among them.
        prefer: what decides between candidates that are level.
        acceptable: mean relative score to keep at least.
        acceptable_worst: relative score to keep on the worst task.
    """
    best = best_of(standings)
    if best is None:
        reason = "No candidate can be ranked: none has a score relative to the sources."
        return Recommendation(None, reason, prefer)
    enough = [s for s in standings if _keeps(s, acceptable, acceptable_worst)]
    top = best_of(enough)
    if top is None:
        return _nothing(best, standings, prefer, acceptable, acceptable_worst)
    level = [top, *level_with(top, enough)]
    least = min(s.cost(prefer) for s in level)
    near = [s for s in level if s.cost(prefer) <= least * NEAR[prefer]]
    chosen = max(near, key=lambda s: _known(s.relative.mean))
    others = tuple(s.name for s in level if s is not chosen)
    return Recommendation(chosen.name, _reason(chosen, top, level, standings, prefer), prefer, best.name, others)


def _known(value: float | None, otherwise: float = -np.inf) -> float:
    return otherwise if value is None or np.isnan(value) else float(value)


def _keeps(standing: Standing, mean: float, worst: float) -> bool:
    return (
        standing.name != SEPARATE
        and _known(standing.relative.mean) >= mean
        and _known(standing.worst) >= worst
    )


def _reason(
    chosen: Standing, top: Standing, level: Sequence[Standing], standings: Sequence[Standing], prefer: Prefer
) -> str:
    """Returns one sentence: what is kept, at what size, and why this one of those that are level."""
    said = f"{chosen.name} keeps {kept(chosen.relative)} of the separate models' scores{_instead(chosen, standings)}"
    if len(level) == 1:
        return f"{said}; no other candidate is level with it."
    if chosen is top:
        return f"{said}, the highest mean{_and_least(chosen, level, prefer)}; level with it: {_names(level, chosen)}."
    why = {
        "accuracy": "it is smaller on disk",
        "size": "it is the smallest on disk",
        "speed": "it is the fastest",
        "calibration": "its confidence is calibrated best",
    }[prefer]
    return f"{said}, level with the best, {top.name} ({kept(top.relative)}), and {why}."


def _and_least(chosen: Standing, level: Sequence[Standing], prefer: Prefer) -> str:
    cheapest = prefer != "accuracy" and chosen.cost(prefer) <= min(s.cost(prefer) for s in level) < np.inf
    word = {"size": "the least size", "speed": "the least latency", "calibration": "the best calibration"}
    return f" and {word[prefer]}" if cheapest else ""


def _nothing(
    best: Standing, standings: Sequence[Standing], prefer: Prefer, mean: float, worst: float
) -> Recommendation:
    """Returns the advice to keep the sources, and what that costs."""
    beside = "" if best.worst is None else f" and {percent(best.worst)} on its worst task, {best.relative.worst}"
    said = (
        f"No candidate keeps {percent(mean)} of the separate models' scores and {percent(worst)} on every task: the "
        f"best, {best.name}, keeps {kept(best.relative)}{beside}"
    )
    separate = next((s for s in standings if s.name == SEPARATE), None)
    if separate is None:
        return Recommendation(None, f"{said}.", prefer, best.name)
    return Recommendation(SEPARATE, f"{said}; keeping them apart costs {_costs(separate, best)}.", prefer, best.name)


def _instead(chosen: Standing, standings: Sequence[Standing]) -> str:
    apart = next((s.bytes for s in standings if s.name == SEPARATE), None)
    if chosen.bytes is None or apart is None:
        return ""
    return f" in {megabytes(chosen.bytes)} instead of {megabytes(apart)}"


def _costs(separate: Standing, best: Standing) -> str:
    parts = []
    if separate.bytes is not None:
        instead = "" if best.bytes is None else f" instead of {megabytes(best.bytes)}"
        parts.append(f"{megabytes(separate.bytes)} on disk{instead}")
    if separate.latency is not None:
        instead = "" if best.latency is None else f" instead of {1000 * best.latency:.1f}"
        parts.append(f"{1000 * separate.latency:.1f} ms a text{instead}")
    return " and ".join(parts) or "a model for each task"


def _names(level: Sequence[Standing], but: Standing) -> str:
    return ", ".join(s.name for s in level if s is not but)


def kept(relative: Relative) -> str:
    """Returns a mean relative score as a reader takes it in: `97.3 % (96.1–98.4)`."""
    if relative.mean is None:
        return "–"
    around = "" if relative.low is None or relative.high is None else (
        f" ({100 * relative.low:.1f}–{100 * relative.high:.1f})"
    )
    return f"{100 * relative.mean:.1f} %{around}"


def percent(share: float) -> str:
    """Returns a share in whole per cent."""
    return f"{100 * share:.0f} %"


def megabytes(count: float) -> str:
    """Returns a size on disk."""
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
