"""Builds results/table.md and results/merging.svg from the cells that `run.py` has finished.

python experiments/merging/table.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
ALL = 6
OWN = "own pooler: "
CHOOSING = ("ag_news", "cola", "mrpc", "sst2")
"""The tasks that decided the defaults; the two others confirm them."""


def cells() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((RESULTS / "cells").glob("*.json"))]


def relative(found: Sequence[dict[str, Any]], method: str) -> list[float]:
    return [cell["methods"][method]["relative"] for cell in found if method in cell["methods"]]


def seed_means(found: Sequence[dict[str, Any]], method: str) -> list[float]:
    seeds = sorted({cell["seed"] for cell in found})
    return [statistics.mean(relative([c for c in found if c["seed"] == seed], method)) for seed in seeds]


def wins(found: Sequence[dict[str, Any]], method: str) -> str:
    pairs = list(zip(relative(found, method), relative(found, "average"), strict=True))
    return f"{sum(ours > average for ours, average in pairs)} of {len(pairs)}"


def mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def matthews(found: Sequence[dict[str, Any]], method: str) -> list[float]:
    return [cell["methods"][method]["tasks"]["cola"]["matthews"] for cell in found if "cola" in cell["set"]]


def rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    pairs = [cell for cell in found if len(cell["set"]) == 2]
    whole = [cell for cell in found if len(cell["set"]) == ALL]
    names = [name for name in found[0]["methods"] if not name.startswith(OWN)]
    table = [
        [
            name,
            mean_and_spread(relative(pairs, name)),
            f"{min(relative(pairs, name)):.3f}",
            wins(pairs, name),
            mean_and_spread(seed_means(pairs, name)).partition(" ± ")[2] or "–",
            mean_and_spread(matthews(pairs, name)),
            mean_and_spread(relative(whole, name)),
            mean_and_spread([cell["methods"][name]["merge_seconds"] for cell in whole]).partition(" ")[0],
        ]
        for name in names
    ]
    return sorted(table, key=lambda row: -float(row[1].partition(" ")[0]))


HEADERS = (
    "method",
    "pairs: relative accuracy",
    "worst pair",
    "above average",
    "spread of seed means",
    "CoLA Matthews in pairs",
    "all six",
    "merge, s",
)


OWN_HEADERS = (
    "method",
    "all six",
    "worst task",
    "tasks that chose",
    "tasks that confirm",
    "CoLA Matthews",
    "pairs",
    "worst pair",
    "seeds, pairs",
    "merge + refine, s",
)


def own_rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the rows of methods that leave each task its pooler, best first on all six."""
    names = dict.fromkeys(name for cell in found for name in cell["methods"] if name.startswith(OWN))
    whole = [cell for cell in found if len(cell["set"]) == ALL]
    pairs = [cell for cell in found if len(cell["set"]) == 2]
    table = [own_row(name, having(whole, name), having(pairs, name)) for name in names]
    return sorted(table, key=lambda row: row[1], reverse=True)


def having(found: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [{**cell["methods"][name], "seed": cell["seed"]} for cell in found if name in cell["methods"]]


def own_row(name: str, whole: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> list[str]:
    def part(tasks: Sequence[str]) -> list[float]:
        return [statistics.mean(cell["relative_by_task"][t] for t in tasks) for cell in whole]

    others = sorted({task for cell in whole for task in cell["relative_by_task"]} - set(CHOOSING))
    seconds = [cell["merge_seconds"] + cell.get("refine_seconds", 0.0) for cell in whole]
    between = [cell["relative"] for cell in pairs]
    return [
        name.removeprefix(OWN),
        mean_and_spread([cell["relative"] for cell in whole]),
        f"{min((min(c['relative_by_task'].values()) for c in whole), default=float('nan')):.3f}",
        mean_and_spread(part(CHOOSING)),
        mean_and_spread(part(others)),
        mean_and_spread([cell["tasks"]["cola"]["matthews"] for cell in whole]),
        mean_and_spread(between),
        f"{min(between):.3f}" if between else "–",
        f"{len(whole)}, {len(pairs)}",
        mean_and_spread(seconds).partition(" ")[0],
    ]


def own_table(found: Sequence[dict[str, Any]]) -> list[str]:
    return [
        "## Each task keeps its own pooler",
        "",
        "The same sources and rows; BERT's pooler stays with each head. `refine N`: up to N label-free passes over 256 "
        "texts a task (a tenth of them judges); `heads`: fitted to the merged encoder on these texts, after refinement "
        "unless it says before. Defaults were chosen on AG News, CoLA, MRPC and SST-2; TREC and the music reviews "
        "confirm. The last column but one says how much was run.",
        "",
        *(f"| {' | '.join(row)} |" for row in [OWN_HEADERS, ["---"] * len(OWN_HEADERS), *own_rows(found)]),
    ]


def markdown(found: Sequence[dict[str, Any]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [HEADERS, ["---"] * len(HEADERS), *rows(found)]]
    parts = [*preamble(found), "", *own_table(found), "", "## Poolers merged too, as in Plait 0.1", "", *lines]
    return "\n".join([*parts, "", "## Sources", "", *sources(found)]) + "\n"


def preamble(found: Sequence[dict[str, Any]]) -> list[str]:
    count = sum(len(cell["set"]) == 2 for cell in found)
    settings = found[0]["settings"]
    return [
        "# Merging MiniLM fine-tuned on six tasks",
        "",
        f"{count} cells of two tasks, {len(found) - count} of all six; each score on {settings['rows']} held-out rows, "
        f"statistics from {settings['examples']} training examples with their given labels. Relative accuracy is that "
        "of the merged model over that of the source on the same rows, averaged over the tasks of a set; ± is the "
        "standard deviation over sets and seeds. No option of any method was tuned. Seconds were taken on a "
        "busy machine: orders of magnitude, not benchmarks.",
    ]


def sources(found: Sequence[dict[str, Any]]) -> list[str]:
    scores: dict[str, dict[int, dict[str, float]]] = {}
    for cell in found:
        for task, own in cell["sources"].items():
            scores.setdefault(task, {})[cell["seed"]] = own
    lines = ["| task | accuracy | Matthews |", "| --- | --- | --- |"]
    for task, by_seed in sorted(scores.items()):
        columns = [
            mean_and_spread([own[metric] for own in by_seed.values()]) for metric in ("accuracy", "matthews")
        ]
        lines.append(f"| {task} | {' | '.join(columns)} |")
    return lines


def draw(found: Sequence[dict[str, Any]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "plait"
    import matplotlib.pyplot as plt

    pairs = [cell for cell in found if len(cell["set"]) == 2]
    whole = [cell for cell in found if len(cell["set"]) == ALL]
    names = [row[0] for row in rows(found)][::-1]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.34 * len(names) + 1.2), sharey=True, width_ratios=(3, 2))
    for axis, chosen, title in zip(axes, (pairs, whole), ("every pair", "all six"), strict=True):
        for height, name in enumerate(names):
            values = relative(chosen, name)
            color = "#c2410c" if name == "average" else "#0f766e"
            axis.plot(
                values, [height] * len(values), "o", color=color, alpha=0.25, markersize=4, markeredgewidth=0
            )
            if values:
                axis.plot(
                    statistics.mean(values), height, "|", color=color, markersize=14, markeredgewidth=2.5
                )
        if chosen:
            axis.axvline(
                statistics.mean(relative(chosen, "average")), color="#c2410c", linewidth=0.8, alpha=0.6
            )
        axis.set_title(f"{title} ({len(chosen)} merges)", loc="left", fontsize=10)
        axis.set_xlabel("accuracy of the merged model / of its sources")
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), names)
    figure.tight_layout()
    figure.savefig(file, facecolor="white", metadata={"Date": None})


def main() -> None:
    found = cells()
    if not found:
        raise SystemExit("no finished cells in results/cells; run experiments/merging/run.py first")
    (RESULTS / "table.md").write_text(markdown(found))
    draw(found, RESULTS / "merging.svg")
    print(markdown(found))


if __name__ == "__main__":
    main()
