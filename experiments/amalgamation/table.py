"""Builds results/table.md and results/amalgamation.svg from what `run.py` has finished.

python experiments/amalgamation/table.py
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the experiments share

from grid import markdown, read

RESULTS = Path(__file__).resolve().parent / "results"
RIVALS = ("vkd", "uhc", "dfa", "cfl")
DEFAULT = "mahalanobis hard"
OURS = (
    "muka hard",
    "muka soft",
    "muka hard, no margin",
    "muka soft, no margin",
    "energy hard",
    "energy hard, no margin",
    "mahalanobis hard",
    "mahalanobis soft",
    "mahalanobis hard, no margin",
)
GATES = ("muka", "entropy", "energy", "max_logit", "bald", "mahalanobis", "oracle")
GATED = tuple(f"{gate} hard, no margin" for gate in ("muka", "energy", *GATES[1:2], *GATES[3:]))
LONGER = ("muka hard", "mahalanobis hard", "vkd", "uhc")


def by_row(found: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [entry for entry in found if entry["row"] == name]


def show(values: Sequence[float]) -> str:
    """Returns mean ± standard deviation in per cent, and how many seeds where that is not 3."""
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}" + ("" if len(values) == 3 else f" ({len(values)})")


class Results:
    """All finished cells, and the order of the rows."""

    def __init__(self, folder: str = "") -> None:
        self.rows, self.cells = read(RESULTS / folder / "rows"), read(RESULTS / folder / "cells")
        seen = {entry["row"] for entry in (*self.rows, *self.cells)}
        self.names = [name for name in order() if name in seen]

    def of(self, split: str) -> list[str]:
        """Returns the rows of the disjoint or of the shared split."""
        return [name for name in self.names if name.endswith(" shared") == (split == "shared")]

    def student(self, row: str, student: str) -> dict[int, float]:
        """Returns accuracy by seed."""
        return {c["seed"]: c["accuracy"] for c in by_row(self.cells, row) if c["student"] == student}

    def values(self, row: str, student: str) -> list[float]:
        """Returns the accuracy of each seed."""
        return list(self.student(row, student).values())

    def differences(self, row: str, student: str, other: str) -> list[float]:
        """Returns the differences of two students of equal teachers, texts and seed."""
        a, b = self.student(row, student), self.student(row, other)
        return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]

    def gate(self, row: str, gate: str, what: str) -> list[float]:
        """Returns a gate's routing or target accuracy of each seed."""
        return [entry["gates"][gate][what] for entry in by_row(self.rows, row) if gate in entry["gates"]]


def order() -> list[str]:
    from rows import ROWS

    return list(ROWS)


def main_table(found: Results, split: str) -> list[str]:
    names = [s for s in (*RIVALS, *OURS) if any(found.values(row, s) for row in found.of(split))]
    header = ["row", "best teacher", "teachers' mean", "concat ensemble", *names, "supervised"]
    lines = []
    for row in found.of(split):
        entries = by_row(found.rows, row)
        alone = [[t["accuracy"] for t in entry["teachers"]] for entry in entries]
        whole = all(found.values(row, name) for name in (*RIVALS, DEFAULT))
        most = max((len(found.values(row, s)) for s in names), default=0)  # a lone seed wins nothing
        full = [found.values(row, s) for s in names if most and len(found.values(row, s)) == most]
        best = max(map(statistics.mean, full), default=0.0)
        best = best if whole else 2.0
        lines.append(
            [
                row,
                show([max(each) for each in alone]),
                show([statistics.mean(each) for each in alone]),
                show([entry["ensembles"]["concat"] for entry in entries]),
                *(bold(found.values(row, s), best) for s in names),
                show(found.values(row, "supervised")),
            ]
        )
    return markdown(header, lines)


def bold(values: Sequence[float], best: float) -> str:
    shown = show(values)
    return f"**{shown}**" if values and statistics.mean(values) == best else shown


def gate_table(found: Results, what: str) -> list[str]:
    lines = [[row, *(show(found.gate(row, gate, what)) for gate in GATES)] for row in found.of("disjoint")]
    return markdown(["row", *GATES], lines)


def calibrated(found: Results) -> list[str]:
    names = [
        f"{gate}, {how}"
        for gate in ("muka", "entropy", "energy", "max_logit")
        for how in ("temperature", "standardize")
    ]
    lines = [[row, *(show(found.gate(row, gate, "hard")) for gate in names)] for row in found.of("disjoint")]
    return markdown(["row", *names], lines)


def gated(found: Results) -> list[str]:
    rows = [row for row in found.of("disjoint") if found.values(row, GATED[-1])]
    return markdown(["row", *GATED], [[row, *(show(found.values(row, s)) for s in GATED)] for row in rows])


def against(found: Results) -> list[str]:
    """Returns each of ours against the best rival of each row, in points, over equal teachers and seeds."""
    lines = []
    for student in OURS:
        cells = [student]
        for row in found.of("disjoint"):
            cells.append(behind(found, row, student))
        lines.append(cells)
    return [*plainly(found), *markdown(["", *found.of("disjoint")], lines)]


def plainly(found: Results) -> list[str]:
    """Returns, in words, where the default and MUKA as published are behind the best rival."""
    said = []
    for student, what in ((DEFAULT, "Plait's default"), ("muka hard", "MUKA as published")):
        cells = {row: behind(found, row, student) for row in found.of("disjoint")}
        lost = [f"{row} {cell.partition(' ')[0]}" for row, cell in cells.items() if cell.startswith("-")]
        count = sum(cell != "–" for cell in cells.values())
        where = f"behind the best of VKD, UHC, DFA and CFL on {', '.join(lost)}" if lost else "behind on none"
        said.append(f"- {what} (`{student}`): {where}, of {count} rows where all of them are finished.")
    return [*said, ""]


def behind(found: Results, row: str, student: str) -> str:
    pairs = {rival: found.differences(row, student, rival) for rival in RIVALS}
    if not all(pairs.values()):  # against some of them it would say too much
        return "–"
    rival, values = min(pairs.items(), key=lambda item: statistics.mean(item[1]))
    mean = 100 * statistics.mean(values)
    noise = 100 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    spread = "" if noise is None else f" ± {noise:.1f}"
    return f"{mean:+.1f}{spread} ({rival}, {len(values)})"


def ranking(found: Results) -> list[str]:
    """Returns the students over the rows that all of them have finished, best first."""
    judged = (*RIVALS, "muka hard", "mahalanobis hard", "supervised")
    pairs = [
        (row, seed)
        for row in found.of("disjoint")
        for seed in (0, 1, 2)
        if all(seed in found.student(row, name) for name in judged)
    ]
    names = [
        name
        for name in (*RIVALS, *OURS, "supervised")
        if all(seed in found.student(row, name) for row, seed in pairs)
    ]
    if not pairs:
        return ["No row is finished."]
    lines = []
    for name in names:
        values = [found.student(row, name)[seed] for row, seed in pairs]
        rivals = [max(found.student(row, rival)[seed] for rival in RIVALS) for row, seed in pairs]
        worst = min(value - rival for value, rival in zip(values, rivals, strict=True))
        lines.append([name, f"{100 * statistics.mean(values):.2f}", f"{100 * worst:+.1f}"])
    lines.sort(key=lambda line: -float(line[1]))
    head = f"mean of {len(pairs)} rows and seeds"
    return markdown(["student", head, "worst, against that cell's best rival"], lines)


def level(found: Results) -> list[str]:
    lines = []
    for cell in read(RESULTS / "twice"):
        once = found.student(cell["row"], cell["student"]).get(cell["seed"])
        lines.append(
            [
                f"{cell['row']}, seed {cell['seed']}: {cell['student']}",
                "–" if once is None else f"{100 * once:.1f}",
                f"{100 * cell['accuracy']:.1f}",
            ]
        )
    return markdown(["", "as long as all", "twice as long"], lines)


def longer(found: Results) -> list[str]:
    """Returns what teachers trained much longer do to a row."""
    then = Results("longer")
    lines = []
    for row in [name for name in found.names if by_row(then.rows, name)]:
        for label, results in (("the table's", found), ("longer", then)):
            entries = [entry for entry in by_row(results.rows, row) if entry["seed"] == 0]
            for entry in entries:
                own = [t["accuracy_on_own_labels"] for t in entry["teachers"]]
                chosen = [[v for s, v in results.student(row, name).items() if s == 0] for name in LONGER]
                routing = [entry["gates"][gate]["routing"] for gate in ("muka", "energy", "mahalanobis")]
                cells = [own, [entry["ensembles"]["concat"]], *([value] for value in routing), *chosen]
                shown = [show(cell).removesuffix(" (1)").partition(" ±")[0] for cell in cells]
                lines.append([row, label, *shown])
    header = [
        "row, seed 0",
        "teachers",
        "own labels",
        "concat",
        "routing: muka",
        "energy",
        "mahalanobis",
        *LONGER,
    ]
    return markdown(header, lines)


JUDGED = ("mahalanobis", "strata", "base", "vocabulary", "update", "auto", "oracle")
"""Gates that need no passes, as `routing.py` judges them."""


def by_weights(found: Results) -> list[str]:
    """Returns routing and target accuracy of the gates that look at weights, and of all together."""
    cells = read(RESULTS / "routing")
    lines = []
    for row in found.names:
        for entry in by_row(cells, row):
            gates = [entry["gates"].get(gate) for gate in JUDGED]
            shown = ["–" if g is None else f"{100 * g['routing']:.1f} / {100 * g['hard']:.1f}" for g in gates]
            lines.append([f"{row}, seed {entry['seed']}", *shown])
    return markdown(["row", *JUDGED], lines)


def weighings(found: Results) -> list[str]:
    """Returns the routing accuracy of other ways of weighing the three gates of `auto`, and of fewer or more gates."""
    cells = read(RESULTS / "routing")
    names = list(dict.fromkeys(name for entry in cells for name in entry["ways of weighing"]))
    fewer = list(dict.fromkeys(name for entry in cells for name in entry["gates"] if name.startswith("auto ")))
    lines = []
    for row in found.names:
        for entry in by_row(cells, row):
            told = [entry["ways of weighing"][name] for name in names] + [entry["gates"][name] for name in fewer]
            lines.append([f"{row}, seed {entry['seed']}", *(f"{100 * g['routing']:.1f}" for g in told)])
    return markdown(["row", *names, *fewer], lines)


def labels_worth(found: Results) -> list[str]:
    """Returns the routing accuracy of `auto` and of `fitted` with 20, 50 and 100 labelled texts."""
    lines = []
    for row in found.names:
        for entry in by_row(read(RESULTS / "routing"), row):
            told = [
                f"{100 * of['routing'][0]:.1f} ± {100 * of['routing'][1]:.1f}" for of in entry["labelled"].values()
            ]
            lines.append(
                [f"{row}, seed {entry['seed']}", f"{100 * entry['gates']['auto']['routing']:.1f}", *told]
            )
    return markdown(["row", "auto, no labels", "fitted, 20 labels", "50", "100"], lines)


def corrected(found: Results) -> list[str]:
    """Returns what a round of students makes of the routing and of the hard targets."""
    lines = []
    for row in found.names:
        for entry in by_row(read(RESULTS / "corrected"), row):
            told = [entry[when] for when in ("before", "student alone", "after")]
            shown = (f"{100 * of['routing']:.1f} / {100 * of['hard']:.1f}" for of in told)
            lines.append([f"{row}, seed {entry['seed']}", *shown, f"{entry['forwards']:.1f}"])
    return markdown(["row", "auto", "students' mass alone", "auto with it", "passes per text"], lines)


def by_command(found: Results) -> list[str]:
    """Returns the students that the program makes by itself, beside the others of equal teachers, texts and seed."""
    names = [name for name in ("auto", "auto round 1", "auto hard", "auto soft") if any(
        found.values(row, name) for row in found.names
    )]  # fmt: skip
    lines, shares = [], []
    for row in found.of("disjoint"):
        for seed, accuracy in sorted(found.student(row, "auto").items()):
            cells = {name: found.student(row, name).get(seed) for name in (*RIVALS, "muka hard", DEFAULT, *names)}
            gold = found.student(row, "supervised").get(seed)
            rival, most = max(
                ((name, cells[name] or 0.0) for name in (*RIVALS, "muka hard")), key=lambda pair: pair[1]
            )
            shares += [accuracy / gold] if gold else []
            shown = [f"{100 * v:.1f}" if v is not None else "–" for v in (cells[DEFAULT], *map(cells.get, names), gold)]
            share = f"{accuracy / gold:.3f}" if gold else "–"
            lines.append([f"{row}, seed {seed}", f"{100 * most:.1f} ({rival})", *shown, share])
    head = ["row", "best of VKD, UHC, DFA, CFL, MUKA", "mahalanobis hard", *names, "gold", "auto of gold"]
    if not shares:
        return markdown(head, lines)
    mean = f"Mean share of gold over {len(shares)} rows and seeds: {statistics.mean(shares):.3f}."
    return [mean, "", *markdown(head, lines)]


def teachers(found: Results) -> list[str]:
    scores: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in found.rows:
        for teacher in entry["teachers"]:
            scores.setdefault(teacher["name"], {})[entry["seed"]] = teacher
    lines = [
        [
            name,
            str(len(next(iter(seeds.values()))["labels"])),
            show([t["accuracy_on_own_labels"] for t in seeds.values()]),
        ]
        for name, seeds in sorted(scores.items())
    ]
    return markdown(
        ["teacher (data, labels by rank, encoder)", "labels", "accuracy on texts of its labels"], lines
    )


PREAMBLE = """# Teachers with different labels teach one student

Accuracy over the union of labels on held-out texts, in per cent: mean ± standard deviation over seeds (in brackets how
many seeds, where not 3; a seed draws the split, the teachers and the student). Teachers, student and test see different
texts. All students are MiniLM-L6 trained alike and differ in nothing but the objective, whose options are Plait's
defaults. Two of those were settled on the first cells of seed 0: that `mahalanobis` is the gate, after its routing on
TREC and search snippets 2+6, and the 0.1 of CFL, which had learnt hardly any labels with 1 (13.3 on TREC).
Bold is the best of the students that see no label and have all seeds; *supervised* reads the gold labels of the
transfer texts. Students named after a gate weight texts by the margin, as the paper does, where it does not say
"no margin".
"""

SECTIONS = (
    ("Students", lambda found: main_table(found, "disjoint")),
    ("Students by command: gate `auto`", by_command),
    ("Over all rows and seeds whose first students are complete", ranking),
    ("Ours less the best rival of each row", against),
    (
        "Gates: how often the chosen teacher knows the text's label (transfer texts)",
        lambda f: gate_table(f, "routing"),
    ),
    ("Gates: how often the hard target is the true label (transfer texts)", lambda f: gate_table(f, "hard")),
    ("Gates that need no passes: routing / hard target is the true label (transfer texts)", by_weights),
    ("Ways of weighing the gates of `auto`: routing", weighings),
    ("What labels are worth: routing on the texts that were not labelled", labels_worth),
    ("What a round of students corrects: routing / hard target", corrected),
    ("Calibrated gates: how often the hard target is the true label", calibrated),
    ("Students of other gates (hard targets, no margin)", gated),
    (
        "The papers' shared split: the student learns from the teachers' own texts",
        lambda f: main_table(f, "shared"),
    ),
    ("Is the training long enough?", level),
    ("Teachers trained longer: about as accurate on their own labels, otherwise sure", longer),
    ("Teachers", teachers),
)


def page(found: Results) -> str:
    parts = [PREAMBLE]
    for title, build in SECTIONS:
        parts.append(f"## {title}\n\n" + "\n".join(build(found)) + "\n")
    return "\n".join(parts)


def draw(found: Results, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "plait"
    import matplotlib.pyplot as plt

    rows = [row for row in found.of("disjoint") if found.values(row, "vkd")]
    columns = min(5, max(1, len(rows)))
    lines = max(1, -(-len(rows) // columns))
    names = [*RIVALS, *OURS][::-1]
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.0 * columns + 1.4, 2.6 * lines), sharey=True, squeeze=False
    )
    for axis, row in zip(axes.flat, rows, strict=False):
        for height, name in enumerate(names):
            values = [100 * v for v in found.values(row, name)]
            color = "#c2410c" if name in RIVALS else "#0f766e"
            axis.plot(
                values, [height] * len(values), "o", color=color, alpha=0.35, markersize=5, markeredgewidth=0
            )
            if values:
                axis.plot(
                    statistics.mean(values), height, "|", color=color, markersize=13, markeredgewidth=2.5
                )
        for values, style in (
            ([e["ensembles"]["concat"] for e in by_row(found.rows, row)], ":"),
            (found.values(row, "supervised"), "-"),
        ):
            if values:
                axis.axvline(100 * statistics.mean(values), color="#475569", linewidth=0.9, linestyle=style)
        axis.set_title(row, loc="left", fontsize=9)
        axis.grid(axis="x", alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right", "left"]].set_visible(False)
    for axis in list(axes.flat)[len(rows) :]:
        axis.set_visible(False)
    axes[0, 0].set_yticks(range(len(names)), names)
    figure.suptitle(
        "accuracy over the union of labels, %; lines: the teachers together (dotted), gold labels (solid)",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(file, facecolor="white", metadata={"Date": None})


def main() -> None:
    found = Results()
    if not found.cells:
        raise SystemExit("no finished cells in results/cells; run experiments/amalgamation/run.py first")
    text = page(found)
    (RESULTS / "table.md").write_text(text)
    draw(found, RESULTS / "amalgamation.svg")
    print(text)


if __name__ == "__main__":
    main()
