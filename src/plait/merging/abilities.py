"""What works for each family, from the table; apart, as the documentation shows it and a test tries every tick."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from plait.encoders.decoder_families import DECODERS, MIXTURES
from plait.encoders.families import Family
from plait.encoders.topology import TABLES
from plait.encoders.vision_families import HEADLESS
from plait.merging.rule import RULES

WITHOUT_TABLE = "any other"
"""Families that transformers knows and the table does not."""


@dataclass(frozen=True)
class Ability:
    """A way of merging: what a table calls it, and the arguments of `merge` that ask for it."""

    name: str
    method: str
    importance: str | None = None
    forward: bool = False


def abilities() -> tuple[Ability, ...]:
    """Returns all ways of merging: each importance, statistics in forward order, each rule."""
    informed = (
        *(Ability(f"fisher: {name}", "fisher", name) for name in ("mask_nodes", "block_traces", "diagonal")),
        Ability("regmean", "regmean"),
        Ability("regmean --forward", "regmean", forward=True),
        Ability("calibrate", "calibrate"),
    )
    known = {ability.method for ability in informed}
    return (*informed, *(Ability(name, name) for name in RULES if name not in known))


def families() -> tuple[str, ...]:
    """Returns the families of the table, and what stands for all others."""
    return (*TABLES, WITHOUT_TABLE)


def works(ability: Ability, model_type: str) -> bool:
    """Returns whether a way of merging works for a family."""
    family = TABLES.get(model_type)
    if ability.importance and model_type in HEADLESS:
        return False
    if ability.importance in ("mask_nodes", "block_traces"):
        return family is not None and not (ability.importance == "mask_nodes" and model_type in MIXTURES)
    if ability.method == "calibrate":
        # It fits LayerNorms as they stand in encoders; language models have norms of other kinds.
        return family is not None and model_type not in DECODERS and _ordered(family)
    return not ability.forward or family is None or _ordered(family)


def _ordered(family: Family) -> bool:
    """Returns whether layers have one forward order, each its own weights."""
    return family.upper is None and family.layer.count("{}") == 1


def table(names: Iterable[str] | None = None) -> list[list[str]]:
    """Returns the rows of the documentation's table: a family, and ✓ or – for each way of merging."""
    return [
        [name, *("✓" if works(ability, name) else "–" for ability in abilities())]
        for name in (families() if names is None else names)
    ]
