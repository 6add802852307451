"""The page of a comparison: the answer first, then what it rests on, then where everything comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from plait.reports.blocks import Block, Chart, Listing, Page, Prose, Section, Table, Verdict
from plait.reports.charts import Point, bars, front, ranking
from plait.reports.comparison import SEPARATE, Candidate, Comparison
from plait.reports.drawing import WIDE
from plait.reports.front import portable
from plait.reports.inside import conflict_section, importance_section
from plait.reports.training_blocks import (
    diversity_section,
    history_section,
    reliability_section,
    routing_section,
)
from plait.reports.words import (
    NONE,
    between,
    duration,
    megabytes,
    millions,
    plain,
    share,
    with_interval,
)

NAMED = 9
"""Names beside a figure: more do not fit beside each other."""
SHOWN = 12
"""Candidates drawn in one chart; the tables have all."""
Cost = tuple[str, str, Callable[[Candidate], float | None]]
PARTS: tuple[Callable[[Comparison], Section | None], ...]


def comparison_page(found: Comparison) -> Page:
    """Returns the page; parts without data are left out."""
    sections = [section for part in PARTS if (section := part(found)) is not None]
    made = ", ".join(filter(None, [found.created, f"Plait {found.plait}" if found.plait else None]))
    return Page(
        title="Which way of combining is best for these models?",
        subtitle=f"{len(found.sources)} sources, {len(found.tasks)} tasks, {len(found.done)} candidates measured",
        sections=tuple(sections),
        verdict=verdict(found),
        notes=found.notes,
        foot=f"Made by plait compare{f' ({made})' if made else ''}.",
    )


def verdict(found: Comparison) -> Verdict | None:
    """Returns the recommended choice, None where nothing could be measured."""
    choice = found.choice
    if choice is None or found.recommended is None:
        return None
    facts = [
        (
            "mean relative score",
            share(choice.mean_relative),
            f"95 %: {around}" if (around := _interval(choice)) else "",
        ),
        (
            "worst task",
            share(choice.worst.relative) if choice.worst else NONE,
            choice.worst.task if choice.worst else "",
        ),
        ("on disk", megabytes(choice.bytes), f"{millions(choice.parameters)} parameters"),
        (
            "per text",
            duration(choice.latency.get("1")),
            "alone"
            + (
                f"; {duration(batch)} in batches of 32"
                if (batch := choice.latency.get("32")) is not None
                else ""
            ),
        ),
        ("to make", duration(choice.seconds), ""),
    ]
    prefer = found.recommended.prefer
    label = "Recommended" + (f" for {prefer}" if prefer else "")
    title = choice.title if choice.title and choice.title != choice.id else ""
    return Verdict(label, choice.name, found.recommended.reason, tuple(facts), tuple(_ways(choice)), title)


def _interval(one: Candidate) -> str:
    return between(*one.interval, shares=True) if one.interval else ""


def _ways(choice: Candidate) -> list[tuple[str, str]]:
    """Returns where the choice lies and the command that makes it again."""
    folder = [("It already lies in", choice.folder)] if choice.folder else []
    again = (
        [("Make it again", f"plait run recipes/{choice.id}.yaml")] if choice.recipe else []
    )
    return [*folder, *again]


def candidates_section(found: Comparison) -> Section | None:
    """Returns the measured candidates: the ranking and the table of what each costs."""
    done = found.done
    if not done:
        return None
    strong = found.recommended.id if found.recommended else None
    blocks: list[Block] = []
    scored = [one for one in done if one.mean_relative is not None]
    if scored:
        points, label = (
            [_point(one, strong) for one in chosen(found, scored)],
            "mean score relative to the sources",
        )
        rows = [(one.name, share(one.mean_relative), _interval(one) or NONE) for one in scored]
        behind = Table("Mean relative score", ("candidate", "mean", "95 % interval"), tuple(rows))
        wide = ranking(points, label, width=WIDE)
        blocks.append(
            Chart("ranking", "Mean relative score", RANKING_SAYS, ranking(points, label), behind, wide)
        )
    marked = tuple(at for at, one in enumerate(done) if one.id == strong)
    rows = [_costs(one, found) for one in done]
    header = (
        "candidate",
        "mean",
        "worst task",
        "on disk",
        "parameters",
        "per text",
        "in 32s",
        "to make",
        "standing",
    )
    table = Table(
        "All measured candidates, best mean first",
        header,
        tuple(rows),
        ("worst task", "standing"),
        marked,
        stack=True,
    )
    lead = "A candidate's score on a task is divided by that of the task's own model; the mean is over tasks."
    return Section("candidates", "Candidates", lead, [*blocks, table])


RANKING_SAYS = (
    "Dots are means over tasks, lines their 95 % intervals (bootstrap over test rows, paired). The dashed line is what "
    "the separate sources reach. Candidates whose intervals overlap much are level."
)


def _costs(one: Candidate, found: Comparison) -> tuple[str, ...]:
    worst = f"{one.worst.task} {share(one.worst.relative)}" if one.worst else NONE
    level = found.recommended.level_with if found.recommended else ()
    standing = [
        word
        for word, holds in (
            ("recommended", found.recommended is not None and one.id == found.recommended.id),
            ("highest mean", one.id == found.best),
            ("level with the recommended", one.id in level),
            ("on the front", one.id in found.pareto),
        )
        if holds
    ]
    return (
        one.name,
        share(one.mean_relative),
        worst,
        megabytes(one.bytes),
        millions(one.parameters),
        duration(one.latency.get("1")),
        duration(one.latency.get("32")),
        duration(one.seconds),
        ", ".join(standing) or NONE,
    )


def chosen(found: Comparison, among: list[Candidate], limit: int = SHOWN) -> list[Candidate]:
    """Returns those that a chart shows, in their order: what matters first, then the best."""
    matters = {SEPARATE, found.best, found.recommended.id if found.recommended else None, *found.pareto}
    first = [one for one in among if one.id in matters][:limit]
    kept = {one.id for one in [*first, *(one for one in among if one.id not in matters)][:limit]}
    return [one for one in among if one.id in kept]


def _point(one: Candidate, strong: str | None, cost: float = 0.0, named: bool = True) -> Point:
    return Point(one.name, one.mean_relative or 0.0, one.interval, one.way, one.id == strong, cost, named)


COSTS: tuple[Cost, ...] = (
    ("size", "MB on disk", lambda one: one.bytes and one.bytes / 1e6),
    ("speed", "milliseconds per text, one at a time", lambda one: (one.latency.get("1") or 0) * 1e3 or None),
    ("making", "seconds to make", lambda one: one.seconds),
)
FRONT_LEAD = (
    "What a higher score costs: the higher and the further left, the better. The line joins the best that can be had "
    "at each cost. Squares are the separate sources, circles merges, triangles amalgamations, diamonds ensembles; the "
    "filled one is recommended."
)


def pareto_section(found: Comparison) -> Section | None:
    """Returns scores over size, speed and time to make."""
    scored = [one for one in found.done if one.mean_relative is not None]
    charts = [chart for cost in COSTS if (chart := _front(found, scored, cost)) is not None]
    if not charts:
        return None
    return Section("front", "Score against cost", FRONT_LEAD, charts)


def _front(found: Comparison, scored: list[Candidate], cost: Cost) -> Chart | None:
    key, label, of = cost
    priced = [(one, value) for one in scored if (value := of(one)) is not None and value > 0]
    if len(priced) < 2:
        return None
    strong = found.recommended.id if found.recommended else None
    named = {one.id for one in chosen(found, [one for one, _ in priced], NAMED)}
    points = [_point(one, strong, value, one.id in named) for one, value in priced]
    rows = tuple((one.name, share(one.mean_relative), f"{value:.4g}") for one, value in priced)
    table = Table(f"Mean relative score and {label}", ("candidate", "mean", label), rows)
    wide = front(points, "mean relative score", label, WIDE)
    title = f"Mean relative score against {label}"
    return Chart(f"front-{key}", title, "", front(points, "mean relative score", label), table, wide)


def tasks_section(found: Comparison) -> Section | None:
    """Returns each task's scores, absolute, with intervals."""
    names = list(
        dict.fromkeys([*(t.name for t in found.tasks), *(n for one in found.done for n in one.scores)])
    )
    charts = [chart for at, name in enumerate(names) if (chart := _task(found, name, at)) is not None]
    if not charts:
        return None
    lead = "Scores on each task's test rows with 95 % intervals; bars begin at zero."
    return Section("tasks", "Task by task", lead, charts)


def _task(found: Comparison, task: str, at: int) -> Chart | None:
    scored = [one for one in found.done if (s := one.scores.get(task)) is not None and s.value is not None]
    if not scored:
        return None
    strong = found.recommended.id if found.recommended else None
    points = [_scored(one, task, strong) for one in chosen(found, scored)]
    metric = scored[0].scores[task].metric or "score"
    about = next((t for t in found.tasks if t.name == task), None)
    counted = f", {about.rows} test rows" if about and about.rows else ""
    rows = []
    for one in scored:
        s = one.scores[task]
        relative = with_interval(s.relative, s.relative_low, s.relative_high, shares=True)
        rows.append((one.name, with_interval(s.value, s.low, s.high), relative))
    table = Table(f"{task}: {metric}{counted}", ("candidate", metric, "relative to the source"), tuple(rows))
    return Chart(f"task-{at + 1}", f"{task}: {metric}{counted}", "", bars(points, metric), table)


def _scored(one: Candidate, task: str, strong: str | None) -> Point:
    score = one.scores[task]
    return Point(one.name, score.value or 0.0, (score.low, score.high), one.way, one.id in (strong, SEPARATE))


def left_out_section(found: Comparison) -> Section | None:
    """Returns what was not measured and why: impossible ways, failures, what the budget left out."""
    blocks: list[Block] = []
    missing = [one for one in found.candidates if not one.done]
    if missing:
        rows = tuple(
            (
                one.name,
                one.status,
                one.reason or NONE,
                duration(one.estimated_seconds),
                megabytes(one.estimated_bytes),
            )
            for one in missing
        )
        header = ("candidate", "status", "reason", "would take", "memory")
        blocks.append(Table("Candidates without a result", header, rows, ("status", "reason"), stack=True))
    if found.possible:
        ways = tuple((way.way, "yes" if way.possible else "no", way.reason or NONE) for way in found.possible)
        blocks.append(
            Table(
                "Ways of combining these sources",
                ("way", "possible", "why"),
                ways,
                ("possible", "why"),
                stack=True,
            )
        )
    if not blocks:
        return None
    return Section("left-out", "What was left out, and why", "", blocks)


def sources_section(found: Comparison) -> Section | None:
    """Returns what was compared, its licences, and the rows that it was scored on."""
    if not found.sources:
        return None
    sources = tuple(
        (
            s.name,
            plain(portable(s.model)),
            plain(s.architecture),
            plain(portable(s.base)),
            millions(s.parameters),
            megabytes(s.bytes),
            s.license or "not known",
            plain(s.labels),
        )
        for s in found.sources
    )
    header = ("source", "model", "class", "base", "parameters", "on disk", "licence", "labels")
    words = ("model", "class", "base", "licence", "labels")
    blocks: list[Block] = [
        Table("Sources and their licences", header, sources, words, stack=True),
        Prose((licences({s.name: s.license for s in found.sources}),)),
    ]
    if found.tasks:
        tasks = tuple(
            (t.name, t.metric or NONE, plain(t.rows), t.test_from or NONE, plain(t.overlap))
            for t in found.tasks
        )
        told = ("task", "metric", "test rows", "test data", "rows also in the data")
        blocks.append(Table("Tasks and their test rows", told, tasks, ("metric", "test data"), stack=True))
    return Section("sources", "Sources, tasks and licences", "", blocks)


def licences(known: Mapping[str, str | None]) -> str:
    """Returns in a sentence what the licences of the sources, by name, mean for a result."""
    unknown = [name for name, licence in known.items() if not licence]
    different = sorted({licence for licence in known.values() if licence})
    if unknown:
        return f"The licence of {', '.join(unknown)} is not known: look it up before you share a result."
    if len(different) == 1:
        return f"All sources have the licence {different[0]}, which a result made of them has too."
    return f"The sources have different licences ({', '.join(different)}): a result must keep to all of them."


def recipe_section(found: Comparison) -> Section | None:
    """Returns the recipes: of the choice, and of the whole comparison."""
    blocks: list[Block] = []
    choice = found.choice
    if choice is not None and choice.recipe:
        blocks.append(Listing(f"Recipe of {choice.name}", as_yaml(choice.recipe), opened=True))
    others = [one for one in found.done if one.recipe and one is not choice]
    if found.recipe:
        blocks.append(Listing("Recipe of this comparison", as_yaml(found.recipe)))
    blocks += [Listing(f"Recipe of {one.name}", as_yaml(one.recipe or {})) for one in others]
    if not blocks:
        return None
    return Section("recipes", "Recipes", "Save one as recipe.yaml; plait run recipe.yaml makes it.", blocks)


def as_yaml(recipe: Mapping[str, Any]) -> str:
    """Returns a recipe as the text of a file."""
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)


def provenance_section(found: Comparison) -> Section | None:
    """Returns machine, versions, digests."""
    facts = {"created": found.created, "took": duration(found.seconds), "plait": found.plait, **found.machine}
    rows = tuple((str(name), plain(portable(value))) for name, value in facts.items() if value is not None)
    blocks: list[Block] = [Table("Where and with what it was measured", ("what", "value"), rows, ("value",))]
    digests = tuple((s.name, s.digest) for s in found.sources if s.digest)
    cells = tuple((one.id, one.cell) for one in found.candidates if one.cell)
    if digests:
        blocks.append(Table("Digests of the sources' weights", ("source", "digest"), digests, ("digest",)))
    if cells:
        blocks.append(
            Table("Cells of the candidates (cells/<name>.json)", ("candidate", "cell"), cells, ("cell",))
        )
    return Section("provenance", "Provenance", "Times are of this machine.", blocks)


PARTS = (
    candidates_section,
    pareto_section,
    tasks_section,
    left_out_section,
    lambda found: reliability_section(found.done, chosen(found, list(found.done), 4)),
    lambda found: routing_section(found.done),
    lambda found: diversity_section(found.done),
    lambda found: history_section(found.done),
    lambda found: conflict_section(found.conflicts),
    lambda found: importance_section(found.importance),
    sources_section,
    recipe_section,
    provenance_section,
)
"""What the page has, in this order."""

__all__ = ["comparison_page", "verdict"]
