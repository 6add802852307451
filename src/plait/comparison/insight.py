"""What explains an answer, apart from the candidates: which heads count for each source, where sources conflict."""

from __future__ import annotations

import logging
from typing import Any

from plait.checkpoints.checkpoint import Checkpoint
from plait.comparison.cells import hashed
from plait.comparison.plan import ComparisonPlan
from plait.data import Examples
from plait.encoders.topology import topology_of
from plait.errors import PlaitError, one_line
from plait.merging.conflicts import conflict_map
from plait.statistics.cache import PASSES, cached

logger = logging.getLogger("plait")
EXAMPLES = 256
"""Texts of each source that its importance is estimated on."""
SHARE = 0.05
"""Share of the budget that may be spent on it."""


def importance(job: ComparisonPlan, left: float | None) -> dict[str, Any] | None:
    """Returns per source the Fisher information of its heads, layer by layer, and the mean of its neurons.

    None where there is no data, a family is not known, or the budget has no room for it.

    Args:
        job: the comparison.
        left: seconds that may still be spent; None for any.
    """
    material = job.situation.material
    rows = {s.name: material.data[s.name] for s in material.sources if s.name in material.data and known(s)}
    key = f"importance-{hashed([job.keys.sources, job.keys.data])}"
    if (noted := job.cells.note(key)) is not None:
        return noted
    takes = 4 * job.estimator.data(EXAMPLES)
    if not rows or (left is not None and takes > left):
        return None
    try:
        found = {s.name: nodes_of(s, rows[s.name]) for s in material.sources if s.name in rows}
    except PlaitError as error:  # what explains an answer must not cost it
        logger.warning("no importance by layer: %s", one_line(error))
        return None
    job.cells.write_note(key, found)
    return found


def conflicts(job: ComparisonPlan) -> dict[str, Any] | None:
    """Returns where the sources' changes agree and where they do not, by layer; None where they cannot be merged."""
    situation = job.situation
    key = f"conflicts-{hashed(job.keys.sources)}"
    if situation.merge is None:
        return None
    if (noted := job.cells.note(key)) is not None:
        return noted
    try:
        found = conflict_map(situation.material.sources, situation.base)
    except PlaitError as error:
        logger.warning("no conflict map: %s", one_line(error))
        return None
    job.cells.write_note(key, found)
    return found


def known(source: Checkpoint) -> bool:
    """Says whether the heads and neurons of a source's family are known."""
    return topology_of(source.config) is not None


def nodes_of(source: Checkpoint, rows: Examples) -> dict[str, Any]:
    """Returns the Fisher information of masks on one source's heads [layer, head], and its neurons' mean by layer."""
    told = {"labels": "given" if rows.labels is not None else "sampled", "per": "example", "passes": PASSES, "seed": 0}
    settings = {**told, "batch_size": 16, "max_length": None}
    found = cached(source, rows.sample(EXAMPLES), "mask_nodes", settings)
    return {"heads": found.heads.tolist(), "neurons": found.neurons.mean(1).tolist()}
