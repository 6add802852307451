"""Whether the paper's claim holds here, in words that are computed from the numbers."""

from __future__ import annotations

import statistics

from costs import costs
from finished import FIRST, PRIMARY, ROWS, SINGLE, VARIANTS, Results, error, gap
from grid import markdown
from variants import CAMERO, SEPARATE, SHARED

OURS = tuple(name for name in VARIANTS if name.startswith("camero"))
STANDARD = SEPARATE.name


def claim(found: Results) -> list[str]:
    """Returns, in words and by task, whether CAMERO beats separate models at about the size of one."""
    lines = [
        [row, *(judged(found, task, row, STANDARD) for task in found.tasks)]
        for row in ROWS
        if row not in {STANDARD, FIRST} and any(found.of(task, row) for task in found.tasks)
    ]
    return [*words(found), "", *markdown(["less separate's", *found.tasks], lines)]


def judged(found: Results, task: str, row: str, other: str) -> str:
    verdict = found.verdict(task, row, other)
    if verdict is None:
        return "–"
    return f"{gap(found.difference(task, row, other, PRIMARY), count=False)} {verdict}"


def words(found: Results) -> list[str]:
    said = [
        "A row is *better* or *worse* on a task where its mean difference is more than one standard error: the larger "
        "of that over seeds and that of one score on so many test texts, √(p (1 − p) / N), for correlations "
        "(1 − r²) / √N. Otherwise it is *level*.",
        "",
    ]
    for row, other in (
        (CAMERO.name, STANDARD),
        (CAMERO.name, SINGLE),
        (CAMERO.name, SHARED.name),
        (STANDARD, SINGLE),
        *((row, STANDARD) for row in ("distilled", "distilled-text") if found.differences(row, STANDARD, PRIMARY)),
    ):
        said += [f"- {sentence(found, row, other)}"]
    best = max(OURS, key=lambda row: statistics.mean(found.differences(row, STANDARD, PRIMARY) or [-1.0]))
    if best != CAMERO.name:
        said += [f"- {sentence(found, best, STANDARD)} (the best of CAMERO's forms on these very test texts)"]
    return [*said, "", conclusion(found)]


def sentence(found: Results, row: str, other: str) -> str:
    """Returns where a row is better, level or worse than another, and by how much over all tasks."""
    by: dict[str, list[str]] = {"better": [], "level": [], "worse": []}
    for task in found.tasks:
        if (verdict := found.verdict(task, row, other)) is not None:
            by[verdict].append(task)
    parts = [f"{verdict} on {', '.join(tasks)}" for verdict, tasks in by.items() if tasks]
    mean = found.differences(row, other, PRIMARY)
    nll = found.differences(row, other, "nll")
    if not mean:
        return f"`{row}` against `{other}`: nothing to compare yet"
    count = f"{len(mean)} task{'s' if len(mean) > 1 else ''}"
    return (
        f"`{row}` against `{other}`: {'; '.join(parts)}. Over {count} {gap(mean, count=False)} points, "
        f"NLL {gap(nll, 1, 3, count=False)}"
    )


def conclusion(found: Results) -> str:
    """Returns whether the paper's claim holds, by the mean over tasks and its standard error."""
    gains = found.differences(CAMERO.name, STANDARD, PRIMARY)
    noise = error(gains)
    if noise is None:
        return "**The claim** cannot be judged on fewer than two tasks."
    mean = statistics.mean(gains)
    verdicts = [found.verdict(task, CAMERO.name, STANDARD) for task in found.tasks]
    better, worse = verdicts.count("better"), verdicts.count("worse")
    size, whole, one = (costs(found, row)[0].removesuffix(" M") for row in (CAMERO.name, STANDARD, SINGLE))
    if mean > noise:
        outcome = "**holds here**: it is better"
    elif mean < -noise:
        outcome = "**does not hold here**: it is worse"
    else:
        outcome = "**does not hold here**: it is level, not better"
    counts = {len(found.difference(task, CAMERO.name, STANDARD, PRIMARY)) for task in found.tasks}
    seeds = sorted(counts - {0})
    counted = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
    counted += " seed" if counted == "1" else " seeds"
    return (
        f"The paper's claim, that CAMERO is better than the standard ensemble of separate models at about the size of "
        f"one, {outcome} ({100 * mean:+.1f} ± {100 * noise:.1f} points over {len(gains)} tasks, {counted}; "
        f"better on {better}, worse on {worse}), with {size} M parameters saved, against {whole} M of the separate "
        f"models and {one} M of one."
    )
