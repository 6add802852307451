"""What lies inside the sources: where they pull apart, and which heads and layers matter to each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from plait.reports.blocks import Block, Chart, Prose, Section, Table
from plait.reports.charts import cells
from plait.reports.comparison import Conflicts, NodeImportance
from plait.reports.words import number

CONFLICT_LEAD = (
    "A task vector is what fine-tuning added to the {origin}. Where two sources' task vectors point the same way, "
    "merging keeps both; where they are at right angles each is diluted; where they point apart, merging hurts both."
)
COSINE_SAYS = (
    "Bright: the two sources changed a layer alike. Dark: without regard to, or against, each other."
)
SIGN_SAYS = "The share of entries that both changed and whose signs agree. Every entry counts once."


def conflict_section(found: Conflicts | None) -> Section | None:
    """Returns the conflict map: layers by pairs of sources."""
    if found is None or not found.pairs or not found.layers:
        return None
    mean = found.origin is not None and found.origin.startswith("mean")
    origin = "mean of the sources" if mean else "base"
    blocks: list[Block] = []
    if mean:
        chance = (
            ""
            if found.chance is None
            else f" (unrelated changes then have a cosine of {number(found.chance, 2)}, not 0)"
        )
        blocks.append(
            Prose(
                (f"No base is known, so changes are measured from the mean of the sources{chance}.",), "warn"
            )
        )
    signs = SIGN_SAYS if mean else f"{SIGN_SAYS} Chance gives 0.5."
    blocks += [_map(found, "cosine", COSINE_SAYS), _map(found, "sign", signs)]
    if found.skipped:
        told = ", ".join(found.skipped[:8]) + (
            f" and {len(found.skipped) - 8} more" if len(found.skipped) > 8 else ""
        )
        blocks.append(Prose((f"Not compared, because the sources do not share them in one shape: {told}.",)))
    return Section("conflicts", "Where the sources conflict", CONFLICT_LEAD.format(origin=origin), blocks)


def _map(found: Conflicts, kind: str, says: str) -> Chart:
    pairs = [f"{pair.a} – {pair.b}" for pair in found.pairs]
    values = [pad(pair.cosine if kind == "cosine" else pair.sign, len(found.layers)) for pair in found.pairs]
    flat = [value for row in values for value in row if value is not None and math.isfinite(value)]
    unrelated = (found.chance or 0.0) if kind == "cosine" else 0.5
    limits = (min([unrelated, *flat]), max([unrelated + 0.05, *flat]))
    what = "cosine of the task vectors" if kind == "cosine" else "share of equal signs"
    rows = tuple(
        (pair, *(number(value, 3) for value in row)) for pair, row in zip(pairs, values, strict=True)
    )
    table = Table(f"{what}, pair by layer", ("pair", *found.layers), rows)
    figure = cells(pairs, layers(found.layers), values, what, limits=limits)
    says = f"{says} {lowest(pairs, found.layers, values)}".strip()
    return Chart(f"conflict-{kind}", f"Conflict map: {what}", says, figure, table)


def lowest(pairs: Sequence[str], names: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    """Returns in a sentence where merging hurts most."""
    known = [
        (value, pair, name)
        for pair, row in zip(pairs, values, strict=True)
        for name, value in zip(names, row, strict=True)
        if value is not None and math.isfinite(value)
    ]
    if not known:
        return ""
    value, pair, name = min(known)
    return f"Lowest: {pair}, {name} ({number(value, 2)})."


def layers(names: Sequence[str]) -> list[str]:
    """Returns the names of layers as short as a chart needs them."""
    return [
        name.removeprefix("layer ").replace("embeddings", "emb").replace("after the layers", "end")
        for name in names
    ]


def pad(row: Sequence[float | None], length: int) -> list[float | None]:
    """Returns a row of exactly this length."""
    return [*row, *[None] * length][:length]


def importance_section(found: Mapping[str, NodeImportance] | None) -> Section | None:
    """Returns by source which heads and which layers' neurons matter."""
    charts = [
        chart
        for at, (name, one) in enumerate((found or {}).items())
        if (chart := _heads(name, one, at)) is not None
    ]
    if not charts:
        return None
    lead = (
        "The Fisher information of each attention head and, in the last column, the mean of a layer's neurons. Each "
        "source is divided by its greatest head: the maps show where, not how much."
    )
    return Section("importance", "What matters to each source", lead, charts)


def _heads(name: str, one: NodeImportance, at: int) -> Chart | None:
    flat = [value for row in one.heads for value in row if value is not None and math.isfinite(value)]
    if not flat:
        return None
    width, greatest = max(map(len, one.heads)), max(flat) or 1.0
    neurons = pad(one.neurons, len(one.heads))
    loudest = max((value for value in neurons if value is not None), default=0.0) or 1.0
    scaled = [[None if v is None else v / greatest for v in pad(row, width)] for row in one.heads]
    has = any(value is not None for value in neurons)
    grid = [
        [*row, *([None if n is None else n / loudest] if has else [])]
        for row, n in zip(scaled, neurons, strict=True)
    ]
    columns = [*(str(head) for head in range(width)), *(["FFN"] if has else [])]
    names = [f"layer {layer}" for layer in range(len(grid))]
    rows = tuple(
        (layer, *("–" if v is None else f"{v:.3g}" for v in [*pad(row, width), *([n] if has else [])]))
        for layer, row, n in zip(names, one.heads, neurons, strict=True)
    )
    table = Table(
        f"{name}: Fisher information",
        ("layer", *(f"head {c}" for c in columns[:width]), *columns[width:]),
        rows,
    )
    figure = cells(
        names, columns, grid, "relative to the greatest", limits=(0.0, 1.0), column_label="attention head"
    )
    return Chart(f"importance-{at + 1}", f"{name}: heads by layer", "", figure, table)
