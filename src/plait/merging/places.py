"""Whether a family's layers, heads and neurons are known where a merge needs them; apart from what reads the inputs."""

from __future__ import annotations

import logging

from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.compatibility import Alignment
from plait.encoders.topology import check_nodes, topology, topology_of
from plait.errors import MergeError

logger = logging.getLogger("plait")


def check_places(source: Checkpoint, alignment: Alignment, estimator: str | None) -> None:
    """Says what is not known of a family without a table.

    Raises:
        MergeError: an importance that needs its heads, neurons or experts.
    """
    if estimator is None:
        return
    known = topology_of(source.config)
    if estimator == "mask_nodes" and known is not None:
        check_nodes(known)
    if estimator not in ("gram", "diagonal") or known is not None:
        if estimator != "gram":
            topology(source.config).check(alignment.owners)
        return
    logger.info(
        "%s is no family of the table: %s is taken by the kind of each module; heads, neurons and layers are not "
        "known, so mask_nodes and block_traces are not offered (docs/families.md)",
        source.config.model_type, estimator,
    )  # fmt: skip


def check_order(source: Checkpoint, method: str) -> None:
    """Raises `MergeError` where an encoder's layers have no single forward order."""
    table = topology_of(source.config)
    depth = getattr(source.config, "num_hidden_layers", None)
    hint = "leave --forward out" if method == "regmean" else "use --method regmean"
    if table is not None and table.family.upper is not None:
        raise MergeError(
            f"{source.config.model_type} has two stacks of layers, so its statistics have no single forward order: "
            f"{hint}"
        )
    if table is not None and depth is not None and table.layers != depth:
        raise MergeError(
            f"{source.config.model_type} applies {table.layers} layer{'s' if table.layers > 1 else ''} {depth} times, "
            f"so its statistics have no single forward order: {hint}"
        )
