"""Charts of plain numbers: points with intervals, bars, maps of cells, lines, a front of cost and score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plait.reports.drawing import (
    DASHES,
    INK,
    LINES,
    MAP,
    MARKS,
    NARROW,
    OTHER,
    PAPER,
    RULE,
    SHAPE,
    SHAPES,
    SOFT,
    WAYS,
    canvas,
    short,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Interval = tuple[float | None, float | None] | None


@dataclass(frozen=True)
class Point:
    """A named value with its interval; `strong` where the eye should go."""

    name: str
    value: float
    interval: Interval = None
    way: str = ""
    strong: bool = False
    cost: float = 0.0
    named: bool = True


@dataclass(frozen=True)
class Line:
    """A named course of values."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    sizes: Sequence[float] = ()


def arms(value: float, interval: Interval) -> list[list[float]] | None:
    """Returns how far an interval reaches below and above, as matplotlib wants it; None without one."""
    low, high = interval or (None, None)
    if low is None or high is None:
        return None
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def percent(value: float, _: object = None) -> str:
    """Returns a share as a tick says it."""
    return f"{100 * value:.6g} %"


def look(point: Point) -> dict[str, Any]:
    """Returns colour and shape of a way, filled where the eye should go."""
    colour = WAYS.get(point.way, OTHER)
    return {
        "marker": SHAPES.get(point.way, SHAPE),
        "markeredgecolor": colour,
        "color": colour,
        "markerfacecolor": colour if point.strong else PAPER,
        "markersize": 7,
        "markeredgewidth": 1.6,
    }


def ranking(
    points: Sequence[Point], label: str, reference: float | None = 1.0, width: float = NARROW
) -> Figure:
    """Returns values with their intervals, one a row, the first on top; the line is what the sources reach."""
    with styled():
        figure, axes = canvas(0.62 + 0.27 * len(points), width)
        rows = range(len(points))
        if reference is not None:
            axes.axvline(reference, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        for row, point in zip(rows, points, strict=True):
            axes.errorbar(
                point.value,
                row,
                xerr=arms(point.value, point.interval),
                elinewidth=1.4,
                capsize=2.5,
                **look(point),
            )
        _rows(axes, points)
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(percent)
        axes.xaxis.set_major_locator(_few())
        axes.grid(axis="x")
        axes.margins(x=0.06)
        return figure


def bars(points: Sequence[Point], label: str) -> Figure:
    """Returns values as bars that begin at zero, with intervals and the number at the end."""
    with styled():
        figure, axes = canvas(0.62 + 0.27 * len(points))
        far = max([*(p.value for p in points), *(p.interval[1] or 0.0 for p in points if p.interval), 1e-9])
        low = min([0.0, *(p.value for p in points), *(p.interval[0] or 0.0 for p in points if p.interval)])
        for row, point in enumerate(points):
            colour = WAYS.get(point.way, OTHER)
            axes.barh(
                row, point.value, height=0.62, color=colour, alpha=1.0 if point.strong else 0.5, linewidth=0
            )
            axes.errorbar(
                point.value,
                row,
                xerr=arms(point.value, point.interval),
                color=INK,
                elinewidth=1.2,
                capsize=2.5,
            )
            axes.text(far * 1.04, row, f"{point.value:.3f}", va="center", color=INK, fontsize=9.5)
        _rows(axes, points)
        axes.axvline(0, color=SOFT, linewidth=0.8)
        axes.set_xlim(low * 1.05, far * 1.24)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(_few())
        return figure


def _rows(axes: Axes, points: Sequence[Point]) -> None:
    axes.set_yticks(range(len(points)), [short(point.name) for point in points])
    for tick, point in zip(axes.get_yticklabels(), points, strict=True):
        tick.set_fontweight("bold" if point.strong else "normal")
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)


def _few() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])


def front(points: Sequence[Point], label: str, cost: str, width: float = NARROW) -> Figure:
    """Returns scores over what they cost, with the best that can be had at each cost as a line.

    Names stand in a column at the right, in the order of the scores, each joined to its point: they never overlap.
    """
    with styled():
        figure, axes = canvas(3.3 if width == NARROW else 3.6, width)
        xs = [p.cost for p in points]
        steps = best_so_far(points)
        axes.step(
            [x for x, _ in steps], [y for _, y in steps], where="post", color=SOFT, linewidth=1, zorder=0
        )
        for point in sorted(points, key=lambda p: p.strong):  # the recommended one on top of its equals
            axes.errorbar(
                point.cost, point.value, yerr=arms(point.value, point.interval), elinewidth=1, **look(point)
            )
        _costs(axes, xs)
        axes.margins(y=0.08)
        axes.set_xlabel(cost)
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(percent)
        axes.grid(axis="y")
        names(axes, [p for p in points if p.named])
        return figure


def _costs(axes: Axes, costs: Sequence[float]) -> None:
    """Scales the axis of costs: by powers where they differ much, with round numbers as ticks."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if max(costs) > 3 * min(costs) > 0:
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.5, max(costs) * 1.8)
        decades = math.log10(max(costs) / min(costs))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.margins(x=0.15)
        axes.xaxis.set_major_locator(_few())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")


def best_so_far(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Returns the corners of the front: at each cost the best score that this cost or less buys."""
    found: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.value)):
        if not found or point.value > found[-1][1]:
            found.append((point.cost, point.value))
    return [*found, (max(p.cost for p in points), found[-1][1])]


def names(axes: Axes, points: Sequence[Point]) -> None:
    """Writes names beside the axes, apart from each other, with a thin line to each point."""
    low, high = axes.get_ylim()
    wanted = sorted(points, key=lambda p: -p.value)
    places = spread([(p.value - low) / (high - low) for p in wanted], 0.075)
    for point, place in zip(wanted, places, strict=True):
        axes.annotate(
            short(point.name, 20),
            (point.cost, point.value),
            (1.03, place),
            xycoords="data",
            textcoords="axes fraction",
            va="center",
            fontsize=9.5,
            color=INK,
            fontweight="bold" if point.strong else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": RULE,
                "linewidth": 0.8,
                "shrinkA": 2,
                "shrinkB": 5,
                "relpos": (0, 0.5),
            },
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Returns falling places moved so that neighbours are at least a gap apart, kept around the middle."""
    found: list[float] = []
    for place in places:
        found.append(min(place, found[-1] - gap) if found else min(place, 1.0))
    below = -found[-1] if found and found[-1] < 0 else 0.0
    return [place + below for place in found]


def cells(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    label: str,
    *,
    limits: tuple[float, float] | None = None,
    digits: int = 2,
    column_label: str = "",
) -> Figure:
    """Returns a map of cells, dark for small; numbers stand in them where there is room."""
    import numpy as np

    with styled():
        grid = np.array(
            [[math.nan if value is None else value for value in row] for row in values], dtype=float
        )
        each = 0.24 if len(rows) > 8 else 0.3
        figure, axes = canvas(min(0.9 + each * len(rows), 12))
        low, high = limits or (float(np.nanmin(grid)), float(np.nanmax(grid)))
        high = high if high > low else low + 1e-9
        drawn = axes.imshow(grid, cmap=MAP, vmin=low, vmax=high, aspect="auto", interpolation="none")
        if len(columns) <= 8 and len(rows) <= 30:
            for (row, column), value in np.ndenumerate(grid):
                light = (value - low) / (high - low) > 0.5
                text = "–" if math.isnan(value) else f"{value:.{digits}f}"
                axes.text(
                    column,
                    row,
                    text,
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="#000001" if light else "#fefefe",
                )
        axes.set_yticks(range(len(rows)), [short(row, 22) for row in rows])
        _columns(axes, columns, column_label)
        bar = figure.colorbar(
            drawn, ax=axes, orientation="horizontal", aspect=40, pad=0.02, location="bottom"
        )
        bar.set_label(label)
        bar.outline.set_visible(False)
        axes.spines[:].set_visible(False)
        return figure


def _columns(axes: Axes, columns: Sequence[str], label: str) -> None:
    """Names columns, as many as have room: long names are turned."""
    step = max(1, math.ceil(len(columns) / 16))
    turned = max(map(len, columns)) > 4 and len(columns) > 4
    axes.set_xticks(
        range(0, len(columns), step),
        [short(c, 16) for c in columns[::step]],
        rotation=40 if turned else 0,
        ha="left" if turned else "center",
        rotation_mode="anchor" if turned else "default",
    )
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(label)


def lines(courses: Sequence[Line], x: str, y: str) -> Figure:
    """Returns courses as lines that differ in colour, dashes and marks, named below."""
    with styled():
        figure, axes = canvas(2.6 + 0.2 * math.ceil(len(courses) / 2))
        for at, line in enumerate(courses):
            mark = MARKS[at % len(MARKS)] if len(line.x) <= 24 else ""
            axes.plot(
                line.x,
                line.y,
                color=LINES[at % len(LINES)],
                linestyle=DASHES[at % len(DASHES)],
                marker=mark,
                markersize=4,
                label=short(line.name),
            )
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(_few())
        figure.legend(loc="outside lower left", ncols=2)
        return figure


def reliability(courses: Sequence[Line], label: str = "accuracy") -> Figure:
    """Returns accuracy over confidence; on the diagonal confidence is what it claims to be.

    The marks' areas are the share of the answers in a bin.
    """
    with styled():
        figure, axes = canvas(3.6 + 0.2 * math.ceil(len(courses) / 2))
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        for at, line in enumerate(courses):
            colour, total = LINES[at % len(LINES)], sum(line.sizes) or 1
            areas = [12 + 150 * size / total for size in line.sizes] or 20
            axes.plot(line.x, line.y, color=colour, linestyle=DASHES[at % len(DASHES)], linewidth=1.2)
            axes.scatter(
                line.x,
                line.y,
                s=areas,
                color=colour,
                marker=MARKS[at % len(MARKS)],
                label=short(line.name),
                alpha=0.85,
                linewidths=0,
            )
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel=label, aspect="equal")
        legend = figure.legend(loc="outside lower left", ncols=2)
        for handle in legend.legend_handles:
            if handle is not None and hasattr(handle, "set_sizes"):
                handle.set_sizes([28])
        return figure


def stacked(
    rows: Sequence[str], parts: Sequence[str], shares: Sequence[Sequence[float | None]], label: str
) -> Figure:
    """Returns shares of a whole, a bar a row; parts differ in colour and hatching."""
    hatches = ("", "//", "..", "\\\\", "xx", "oo")
    with styled():
        figure, axes = canvas(0.75 + 0.27 * len(rows) + 0.2 * math.ceil(len(parts) / 2))
        starts = [0.0] * len(rows)
        for at, part in enumerate(parts):
            widths = [row[at] or 0.0 for row in shares]
            axes.barh(
                range(len(rows)),
                widths,
                left=starts,
                height=0.7,
                label=short(part),
                linewidth=0.6,
                edgecolor=PAPER,
                color=LINES[at % len(LINES)],
                hatch=hatches[at % len(hatches)],
            )
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        axes.set_yticks(range(len(rows)), [short(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(percent)
        axes.xaxis.set_major_locator(_few())
        axes.set_xlabel(label)
        axes.margins(x=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside lower left", ncols=2)
        return figure
