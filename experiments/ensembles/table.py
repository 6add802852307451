"""Builds results/table.md and results/ensembles.svg from what `run.py` has finished.

python experiments/ensembles/table.py
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from claim import claim
from costs import costs, latency_from
from figure import draw
from finished import EPOCH, FIRST, PRIMARY, ROWS, SINGLE, Results, gap, show
from grid import markdown
from tasks import RESULTS, TASKS
from variants import (
    ALPHA_SWEEP,
    CAMERO,
    LAYER_SWEEP,
    MEMBER_SWEEP,
    ONE_PASS,
    SEPARATE,
    SHARED,
    STRENGTH_SWEEP,
    SWEPT,
    with_alpha,
    with_layers,
    with_members,
    with_strength,
)

ONE_PASS_ROWS = tuple(variant.name for variant in ONE_PASS)
LOW = ("nll", "calibration_error", "brier", "aurc", "mse")  # the lower the better
STANDARD = SEPARATE.name


def by_task(found: Results, key: str, scale: float = 100, digits: int = 1, *, best: bool = True) -> list[str]:
    """Returns a score, a row per variant and a column per task; the best of each column is bold."""
    tasks = [task for task in found.tasks if any(found.values(task, row, key) for row in ROWS)]
    rows = [row for row in ROWS if any(found.values(task, row, key) for task in tasks)]
    columns = {}
    for task in tasks:
        values = {row: list(found.values(task, row, key).values()) for row in rows}
        means = {row: statistics.mean(each) for row, each in values.items() if each}
        leading = (min if key.endswith(LOW) else max)(means.values())
        cells = {row: show(each, scale, digits) for row, each in values.items()}
        columns[task] = {
            row: f"**{cell}**" if best and means.get(row) == leading else cell for row, cell in cells.items()
        }
    names = [f"{t} ({found.metric(t)})" if key == PRIMARY else t for t in tasks]
    return markdown(["", *names], [[row, *(columns[task][row] for task in tasks)] for row in rows])


def main_table(found: Results) -> list[str]:
    return by_task(found, PRIMARY)


def summary(found: Results) -> list[str]:
    """Returns what each row saves, costs and gains, over all tasks."""
    ranks = mean_ranks(found)
    lines = []
    for row in ROWS:
        if not any(found.of(task, row) for task in found.tasks):
            continue
        lines.append(
            [
                row,
                *costs(found, row),
                less(found, row, STANDARD, PRIMARY),
                less(found, row, SINGLE, PRIMARY),
                less(found, row, STANDARD, "nll", 1, 3),
                less(found, row, SINGLE, "nll", 1, 3),
                less(found, row, STANDARD, "calibration_error"),
                ranks.get(row, "–"),
            ]
        )
    header = [
        "", "parameters", "MB", "training cost", "passes", "latency", "score less separate's", "less single's",
        "NLL less separate's", "less single's", "calibration error less separate's", "mean rank",
    ]  # fmt: skip
    return markdown(header, lines)


def one_pass(found: Results) -> list[str]:
    """Returns what becomes one model or one pass, beside separate models on the same tasks and seeds."""
    lines = []
    for row in (SINGLE, CAMERO.name, "one", *ONE_PASS_ROWS):
        if any(found.of(task, row) for task in found.counted):
            lines.append(
                [
                    row,
                    less(found, row, STANDARD, PRIMARY),
                    less(found, row, SINGLE, PRIMARY),
                    less(found, row, STANDARD, "nll", 1, 3),
                    gap(found.against(row, "nll", STANDARD, "mean_probability_nll"), 1, 3),
                    less(found, row, SINGLE, "nll", 1, 3),
                    less(found, row, STANDARD, "calibration_error"),
                ]
            )
    header = [
        "", "score less separate's", "less single's", "NLL less that of separate's mean logits",
        "less that of separate's mean probabilities", "less single's", "calibration error less separate's",
    ]  # fmt: skip
    return [ONE_PASS_TEXT, *markdown(header, lines)]


def same_cells(found: Results) -> list[str]:
    """Returns scores and NLL of each finished cell of those rows, beside the rows that they are measured against."""
    lines = []
    for task in found.counted:
        seeds = sorted({seed for row in ONE_PASS_ROWS for seed in found.of(task, row)})
        for seed in seeds:
            for row in (SINGLE, STANDARD, *ONE_PASS_ROWS):
                score = found.values(task, row, PRIMARY).get(seed)
                if score is not None:
                    nll = found.values(task, row, "nll").get(seed)
                    error = found.values(task, row, "calibration_error").get(seed)
                    shown = ["–" if v is None else f"{v:.3f}" for v in (nll, error)]
                    lines.append([f"{task}, seed {seed}", row, f"{100 * score:.1f}", *shown])
    return markdown(["", "", "score", "NLL", "calibration error"], lines)


def less(found: Results, row: str, other: str, key: str, scale: float = 100, digits: int = 1) -> str:
    return "–" if row == other else gap(found.differences(row, other, key), scale, digits)


def mean_ranks(found: Results) -> dict[str, str]:
    """Returns each row's mean rank by the leading score, over the cells that all rows have."""
    rows = [row for row in ROWS if row != FIRST and row not in ONE_PASS_ROWS]
    whole = [
        (task, seed)
        for task in found.counted
        for seed in found.values(task, STANDARD, PRIMARY)
        if all(seed in found.values(task, row, PRIMARY) for row in rows)
    ]
    ranks: dict[str, list[float]] = {row: [] for row in rows}
    for task, seed in whole:
        scores = {row: found.values(task, row, PRIMARY)[seed] for row in rows}
        for row, score in scores.items():
            above = sum(other > score for other in scores.values())
            level = sum(other == score for other in scores.values())
            ranks[row].append(above + (level + 1) / 2)
    return {row: f"{statistics.mean(each):.1f} ({len(each)})" for row, each in ranks.items() if each}


def swept(found: Results, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Returns the scores of a sweep on one task."""
    lines = []
    for label, name in rows:
        if not found.of(SWEPT, name):
            continue

        def scores(key: str, name: str = name) -> list[float]:
            return list(found.values(SWEPT, name, key).values())

        lines.append(
            [
                label,
                show(scores(PRIMARY)),
                show(scores("nll"), 1, 3),
                show(scores("calibration_error")),
                show(scores("disagreement")),
                show(scores("diversity"), 1, 3),
                *costs(found, name)[:-1],
            ]
        )
    header = [SWEPT, found.metric(SWEPT), "NLL", "calibration error", "disagreement", "D"]
    return markdown([*header, "parameters", "MB", "training cost", "passes"], lines)


def member_sweep(found: Results) -> list[str]:
    names = [(v.name, m, with_members(v, m).name) for v in (SEPARATE, SHARED, CAMERO) for m in MEMBER_SWEEP]
    return swept(found, [(SINGLE, SINGLE), *((f"{name}, M = {m}", cell) for name, m, cell in names)])


def layer_sweep(found: Results) -> list[str]:
    return swept(found, [(f"{k} of 6 layers shared", with_layers(k).name) for k in LAYER_SWEEP])


def alpha_sweep(found: Results) -> list[str]:
    return swept(
        found, [("α = 0 (shared)", "shared"), *((f"α = {a:g}", with_alpha(a).name) for a in ALPHA_SWEEP)]
    )


def strength_sweep(found: Results) -> list[str]:
    return swept(
        found,
        [
            (f"adversarial noise, ε = {s:g} of the embeddings' norm", with_strength(s).name)
            for s in STRENGTH_SWEEP
        ],
    )


def strangers(found: Results) -> list[str]:
    scores = ("max_probability", "entropy", "mutual_information")
    lines = []
    for task in [task for task in found.tasks if TASKS[task].strange]:
        for row in ROWS:
            cells = [
                show(list(found.values(task, row, f"{area}_{score}").values()))
                for area in ("auroc", "aupr")
                for score in scores
            ]
            if any(cell != "–" for cell in cells):
                lines.append([row, *cells])
    names = [score.replace("_", " ") for score in scores]
    return markdown(["", *(f"AUROC, {n}" for n in names), *(f"AUPR, {n}" for n in names)], lines)


def long_enough(found: Results) -> list[str]:
    """Returns the models that were trained twice as long, beside those of the table."""
    lines, gains = [], []
    for cell in found.twice:
        task, seed, variant = cell["task"], cell["seed"], cell["variant"]
        kind = SINGLE if variant == "single" else variant  # one model: beside the mean of the four
        once = found.values(task, kind, PRIMARY).get(seed)
        if once is None:
            continue
        then = cell["metrics"][cell["metric"]]
        gains += [then - once]
        lines.append([f"{task}, seed {seed}", kind, *percent(once, then), *spread(found, task, seed, kind)])
    said = [f"Twice as long is {gap(gains)} points better, mean of the lines below.", ""] if gains else []
    return [*said, *markdown(["", "", "as long as all", "twice as long", "the four, as long as all"], lines)]


def percent(*scores: float) -> list[str]:
    return [f"{100 * score:.1f}" for score in scores]


def spread(found: Results, task: str, seed: int, kind: str) -> list[str]:
    """Returns the lowest and highest score of separate models."""
    if kind != SINGLE:
        return ["–"]
    cell = found.of(task, kind)[seed]
    alone = [member[cell["metric"]] for member in cell["members_alone"]]
    return [" to ".join(percent(min(alone), max(alone)))]


PREAMBLE = """# Ensembles of MiniLM

MiniLM-L6 fine-tuned on parts of seven tasks by every method of `plait ensemble`, with M = 4 members, α = 1 for all
tasks (set beforehand) and Plait's defaults otherwise. Scores are those of `plait evaluate` on held-out test texts, in
per cent, as mean ± standard deviation over seeds (in brackets how many, where not 3; a seed draws the training texts
and all of the training). The epoch that is kept is chosen on other texts of the training split. Bold is the best of a
column. RTE, where no row is better than guessing, is in no mean.

`camero` is dropout with the regulariser to the ensemble. `camero pairwise` with the same α is the same regulariser with
2M/(M−1) = 2.7 times the weight: not another method but another α. All models train with the encoder's own dropout;
`gaussian`, `adversarial` and `word-dropout` perturb the embeddings besides. The single model is the first of the
separate ones; the mean of the four is the better estimate of what one is worth.
"""
ONE_PASS_TEXT = """Rows are compared on the tasks and seeds that both have (in brackets how many tasks). Distilled rows
and hydra learn from the four models of `separate` of the same seed; `-text` rows learn from up to 3,000 texts of the
training split besides, without their labels, and see all of them three epochs instead of five; `self-trained-text` has
the first of the four as its only teacher. Soups average four models whose heads start alike.
"""
SIZES = """Sizes are those of {task}. Training cost: forward passes of one encoder for each example that is seen (3 F is
one model). Passes: of one prediction. Differences are in points, ± the standard error over tasks (in brackets how
many). Rank: by the leading score, over the tasks and seeds that all rows have (in brackets how many).
Latency: {latency}. The size of BatchEnsemble is that of one model and its factors; Plait
writes the factors multiplied into the weights of each member.
"""


def sections(found: Results) -> list[tuple[str, list[str]]]:
    return [
        ("Does the claim hold?", claim(found)),
        (
            "Over all tasks: size, cost, gain",
            [SIZES.format(task=SWEPT, latency=latency_from()), *summary(found)],
        ),
        ("One pass: members that teach one model, or are averaged into one", one_pass(found)),
        ("The same, cell by cell", same_cells(found)),
        ("Scores", main_table(found)),
        ("NLL of the mean logits (stsb has none)", by_task(found, "nll", 1, 3)),
        ("Mean squared error", by_task(found, "mse", 1, 3)),
        ("Calibration error", by_task(found, "calibration_error")),
        ("NLL of the mean probabilities", by_task(found, "mean_probability_nll", 1, 3)),
        ("Brier score", by_task(found, "brier", 1, 3)),
        ("AURC: risk averaged over all coverages", by_task(found, "aurc")),
        (f"Members, on {SWEPT}", member_sweep(found)),
        (f"Shared layers, M = 4, on {SWEPT}", layer_sweep(found)),
        (f"Weight of the regulariser, M = 4, on {SWEPT}", alpha_sweep(found)),
        (f"Strength of adversarial noise, M = 4, on {SWEPT}", strength_sweep(found)),
        ("Out of scope: telling texts of no class from the test texts (clinc150)", strangers(found)),
        (
            "Disagreement: pairs of members that decide differently",
            by_task(found, "disagreement", best=False),
        ),
        (
            "D: mean loss of the members less the ensemble's, nats",
            by_task(found, "diversity", 1, 4, best=False),
        ),
        (
            "R: mean symmetric divergence from the ensemble, nats",
            by_task(found, "consistency", 1, 4, best=False),
        ),
        (
            "Mutual information between members and labels, nats",
            by_task(found, "mutual_information", 1, 4, best=False),
        ),
        ("Oracle accuracy: some member is right", by_task(found, "oracle_accuracy", best=False)),
        (
            "The epoch that was kept, by accuracy (Pearson) on other texts: early ones are less sure",
            by_task(found, EPOCH, 1, 1, best=False),
        ),
        ("Is the training long enough?", long_enough(found)),
    ]


def page(found: Results) -> str:
    parts = [f"## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in sections(found)]
    return "\n".join([PREAMBLE, *parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="such as results/full")
    folder = parser.parse_args().results
    found = Results(folder)
    if not found.cells:
        raise SystemExit(f"no finished cells in {folder}; run experiments/ensembles/run.py first")
    text = page(found)
    (folder / "table.md").write_text(text)
    draw(found, folder / "ensembles.svg")
    print(text)


if __name__ == "__main__":
    main()
