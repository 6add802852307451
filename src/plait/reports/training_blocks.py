"""What candidates say of themselves beside scores: calibration, who taught what, diversity, courses of training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from plait.reports.blocks import Block, Chart, Section, Table
from plait.reports.charts import Line, lines, reliability, stacked
from plait.reports.comparison import Calibration, Candidate, Routing
from plait.reports.words import NONE, number, plain, share

TOGETHER = 6
"""Lines in one chart."""


def reliability_section(done: Sequence[Candidate], shown: Sequence[Candidate]) -> Section | None:
    """Returns a diagram per task of those shown, and the calibration error of all."""
    tasks = list(dict.fromkeys(task for one in done for task in one.calibration))
    if not tasks:
        return None
    errors = tuple(
        (one.name, *(number(c.ece) if (c := one.calibration.get(task)) else NONE for task in tasks))
        for one in done
        if one.calibration
    )
    blocks: list[Block] = [
        chart for at, task in enumerate(tasks) if (chart := _reliability(task, shown, at)) is not None
    ]
    blocks.append(Table("Expected calibration error (0 is perfect)", ("candidate", *tasks), errors))
    lead = (
        "On the dashed diagonal an answer given with confidence 0.8 is right in 8 of 10 cases; below it a model claims "
        "more than it knows. The larger a mark, the more answers it stands for."
    )
    return Section("reliability", "Can its confidence be trusted?", lead, blocks)


def _reliability(task: str, shown: Sequence[Candidate], at: int) -> Chart | None:
    found = [
        (one, one.calibration[task])
        for one in shown
        if task in one.calibration and _bins(one.calibration[task])
    ]
    if not found:
        return None
    courses, rows = [], []
    for one, calibration in found:
        bins = _bins(calibration)
        courses.append(Line(one.name, [b[0] for b in bins], [b[1] for b in bins], [b[2] for b in bins]))
        rows += [(one.name, number(c, 2), number(a, 2), f"{n:.0f}") for c, a, n in bins]
    table = Table(f"{task}: reliability", ("candidate", "confidence", "accuracy", "answers"), tuple(rows))
    return Chart(f"reliability-{at + 1}", f"{task}: reliability", "", reliability(courses), table)


def _bins(found: Calibration) -> list[tuple[float, float, float]]:
    return [
        (b.confidence, b.accuracy, float(b.count))
        for b in found.bins
        if b.count and b.confidence is not None and b.accuracy is not None
    ]


def routing_section(done: Sequence[Candidate]) -> Section | None:
    """Returns who taught what, for each amalgamation."""
    charts = [
        routing_chart(one.name, one.routing, f"routing-{at + 1}")
        for at, one in enumerate(done)
        if one.routing and one.routing.labels and one.routing.teachers
    ]
    if not charts:
        return None
    lead = "Which teacher's answers a student learned, by the label of what it learned."
    return Section("routing", "Who taught what", lead, charts)


def routing_chart(name: str, routing: Routing, key: str) -> Chart:
    """Returns the shares of the teachers in each label's texts."""
    shares = [[*row, *[None] * len(routing.teachers)][: len(routing.teachers)] for row in routing.share]
    labels = list(routing.labels)[: len(shares)]
    rows = tuple((label, *(share(v) for v in row)) for label, row in zip(labels, shares, strict=False))
    table = Table(f"{name}: share of each label's texts by teacher", ("label", *routing.teachers), rows)
    figure = stacked(labels[:40], routing.teachers, shares[: len(labels)][:40], "share of the label's texts")
    return Chart(key, f"{name}: who taught which label", "", figure, table)


def diversity_section(done: Sequence[Candidate]) -> Section | None:
    """Returns how members of ensembles differ."""
    found = [(one.name, one.diversity) for one in done if one.diversity]
    if not found:
        return None
    return Section(
        "diversity",
        "How members of ensembles differ",
        "Members that always agree are worth no more than one; those that err on different texts correct each other.",
        [diversity_table(found)],
    )


def diversity_table(found: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    """Returns the figures of several ensembles."""
    keys = list(
        dict.fromkeys(
            key for _, one in found for key, value in one.items() if not isinstance(value, dict | list)
        )
    )
    rows = tuple((name, *(plain(one.get(key)) for key in keys)) for name, one in found)
    return Table("Diversity of ensembles", ("ensemble", *(key.replace("_", " ") for key in keys)), rows)


def history_section(done: Sequence[Candidate]) -> Section | None:
    """Returns courses of training, a chart per quantity."""
    charts = history_charts([(one.name, one.history) for one in done if one.history])
    if not charts:
        return None
    return Section(
        "training", "How training went", "Only candidates that were trained have a course.", charts
    )


def history_charts(histories: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> list[Chart]:
    """Returns a chart for each quantity that was recorded along training, of six lines at most."""
    courses: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for name, entries in histories:
        for (quantity, axis), line in _courses(name, entries).items():
            courses[quantity, axis].append(line)
    charts: list[Chart] = []
    for (quantity, axis), found in courses.items():
        for start in range(0, len(found), TOGETHER):
            charts.append(_course(quantity, axis, found[start : start + TOGETHER], len(charts) + 1))
    return charts


def _courses(name: str, entries: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Line]:
    points: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for entry in entries:
        axis = "step" if "step" in entry else "epoch"
        at, value = entry.get(axis), entry.get("value")
        if isinstance(at, int | float) and isinstance(value, int | float):
            points[str(entry.get("name", "loss")), axis].append((float(at), float(value)))
    return {key: Line(name, [x for x, _ in found], [y for _, y in found]) for key, found in points.items()}


def _course(quantity: str, axis: str, found: Sequence[Line], number_of: int) -> Chart:
    rows = tuple(
        (line.name, f"{x:g}", f"{y:.4g}") for line in found for x, y in zip(line.x, line.y, strict=True)
    )
    words = quantity.replace("_", " ")
    table = Table(f"{words} by {axis}", ("candidate", axis, words), rows)
    return Chart(f"training-{number_of}", f"{words} by {axis}", "", lines(found, axis, words), table)
