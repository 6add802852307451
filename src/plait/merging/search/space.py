"""What a search varies: numbers among a rule's options, and the weight λ of each source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from plait.errors import RecipeError
from plait.recipe import MethodSpec
from plait.registry import Above, Entry, Option

if TYPE_CHECKING:
    from plait.merging.plan import Plan

WEIGHT = "weight of "
"""How the name of a source's λ begins; no option has a blank in its name."""
WEIGHTS = (0.0, 2.0)
"""Where λ is searched, around its default 1."""
WIDE = 1000.0
"""From this ratio of its ends on, a range is searched on a logarithmic scale."""
DIGITS = 4
"""Significant digits of what is tried: a found option should be one that people can type."""


@dataclass(frozen=True)
class Axis:
    """One number that is searched between two ends; `start` is what the first trial takes."""

    name: str
    low: float
    high: float
    start: float

    @property
    def logarithmic(self) -> bool:
        """Returns whether equal ratios, rather than equal differences, are equally far."""
        return self.low > 0 and self.high / self.low >= WIDE

    def rounded(self, value: float) -> float:
        """Returns the value with few digits, inside the range."""
        return min(self.high, max(self.low, float(f"{value:.{DIGITS}g}")))


def space_of(job: Plan) -> tuple[Axis, ...]:
    """Returns what a plan's search varies: numbers of the rule and weights that the recipe does not give.

    The rule's fact `search` says where each option is searched; without it, wherever its `limits` have two ends.

    Raises:
        RecipeError: nothing is left to vary.
    """
    given = job.method.options
    ranges = {name: limits for name, limits in search_ranges(job.rule).items() if name not in given}
    axes = [
        Axis(name, low, high, min(high, max(low, float(job.rule.options[name].default))))
        for name, (low, high) in ranges.items()
    ]
    if "weights" in job.rule.inputs and len(job.sources) > 1:
        given_by_layer = {name for name, source in job.recipe.sources.items() if source.layer_weights}
        free = [n for n, source in job.recipe.sources.items() if source.weight is None and n not in given_by_layer]
        axes += [Axis(f"{WEIGHT}{name}", *WEIGHTS, 1.0) for name in free]
    if not axes:
        raise RecipeError(
            f"--search: method {job.rule.name} has no number left to vary: leave --set and --weight out, or --search"
        )
    return tuple(axes)


def search_ranges(rule: Entry[Any]) -> dict[str, tuple[float, float]]:
    """Returns by option between which ends it is searched."""
    declared: Mapping[str, tuple[float, float]] | None = rule.facts.get("search")
    if declared is not None:
        return dict(declared)
    return {name: ends for name, option in rule.options.items() if (ends := _ends(option)) is not None}


def _ends(option: Option) -> tuple[float, float] | None:
    """Returns the limits of an option that is a number with two of them that it may take."""
    limits = option.limits
    if limits is None or isinstance(limits, Above) or option.annotation is not float:
        return None
    low, high = limits
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def with_values(job: Plan, values: Mapping[str, float]) -> Plan:
    """Returns the plan of an ordinary merge with these options and weights, as if they had been given."""
    weights = {n.removeprefix(WEIGHT): value for n, value in values.items() if n.startswith(WEIGHT)}
    options = {name: value for name, value in values.items() if not name.startswith(WEIGHT)}
    method = MethodSpec.model_validate({**job.method.model_dump(exclude_unset=True), "name": job.rule.name, **options})
    sources = {
        name: source.model_copy(update={"weight": weights[name]}) if name in weights else source
        for name, source in job.recipe.sources.items()
    }
    content = {name: getattr(job.recipe, name) for name in job.recipe.model_fields_set if name not in SETTINGS}
    recipe = type(job.recipe).model_validate({**content, "sources": sources, "method": method})
    return replace(job, recipe=recipe, method=method)


SETTINGS = ("search", "search_rows", "search_batch", "storage", "validation")
"""Fields of a recipe that say how to search; the recipe of what was found has none of them."""
