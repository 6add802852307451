"""The model card of a student: its labels, its teachers, who taught what, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from plait.report.card import as_markdown, table

USE = """```python
from transformers import pipeline

classify = pipeline("text-classification", model="{folder}")
classify("Some text.")
```"""


def student_card(report: Mapping[str, Any]) -> str:
    """Returns the card as Markdown with the front matter that model hubs read."""
    folder, recipe = str(report["recipe"]["output"]), report["recipe"]
    cost = report["forward_equivalents"]
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-classification\ntags:\n- plait\n- amalgamation\n---",
        f"# {as_markdown(PurePath(folder).name)}",
        f"{len(report['teachers'])} teachers taught this model {len(report['labels'])} labels from "
        f"{report['data']['texts']} texts without labels, by Plait: {method(recipe)}.",
        "## Use",
        USE.format(folder=folder),
        "## Who taught what",
        teachers_table(report),
        *gates_told(report["who_taught_what"]),
        *rounds_told(report),
        "## Training",
        epochs_table(report["epochs"]) if report["epochs"] else "No texts were held back.",
        f"Forward passes per text, a backward pass counted as two: {cost['teachers']:g} of the teachers, "
        f"{cost.get('base', 0):g} of the base and {cost['student']:g} of the student.",
        "## Recipe",
        "```yaml\n" + yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True) + "```",
        "Made with " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def method(recipe: Mapping[str, Any]) -> str:
    """Returns in a few words how a student was taught."""
    name = recipe["objective"]["name"]
    gate = (
        f" with the gate `{recipe['gate']['name']}`, {recipe['target']} targets" if "gate" in recipe else ""
    )
    return f"objective `{name}`{gate}"


def teachers_table(report: Mapping[str, Any]) -> str:
    """Returns the teachers with their labels and the share of texts that each taught."""
    about = report["who_taught_what"]["teachers"]
    gated = all("share" in of for of in about.values())
    key = "share" if gated else "mean_weight"
    rows = [
        (name, teacher["origin"], ", ".join(teacher["labels"]), f"{100 * about[name][key]:.1f} %")
        for name, teacher in report["teachers"].items()
    ]
    return table(("teacher", "model", "labels", "share of the texts" if gated else "mean weight"), rows)


def gates_told(who: Mapping[str, Any]) -> list[str]:
    """Returns what each gate of a joint one weighed, and how much of the corpus each teacher is taken to know."""
    panel = who.get("panel")
    if panel is None:
        return []
    columns = tuple(dict.fromkeys(key for about in panel["gates"].values() for key in about))
    rows = [
        (name, *(f"{about[key]:.2f}" if key in about else "" for key in columns))
        for name, about in panel["gates"].items()
    ]
    learnt = f"{panel['labelled']} labelled texts" if "labelled" in panel else "the texts alone, without labels"
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in panel["prior"].items())
    return [
        f"Several gates decided together, with weights found on {learnt}. Separation is how many standard deviations "
        "lie between the scores of a teacher's texts and of the others; agrees, how often a gate alone would choose "
        "the same.",
        table(("gate", *columns), rows),
        f"Shares of the texts that each teacher is taken to know: {shares}.",
    ]


def rounds_told(report: Mapping[str, Any]) -> list[str]:
    """Returns how students corrected the routing, round by round; how often it was right where labels exist."""
    before = report.get("rounds_before", [])
    if not before:
        return []
    names = tuple(report["teachers"])
    rows = []
    for number, who in enumerate([*before, report["who_taught_what"]]):
        right = who.get("routing", {}).get("accuracy")
        shares = (f"{100 * who['teachers'][name]['share']:.1f} %" for name in names)
        rows.append((str(number), *shares, "" if right is None else f"{100 * right:.1f} %"))
    return [
        f"{len(before)} rounds of students corrected the routing; each student was asked about texts it had not seen.",
        table(("corrections", *names, "routing accuracy"), rows),
    ]


def epochs_table(epochs: list[dict[str, float]]) -> str:
    """Returns what the judge said after each epoch."""
    names = tuple(dict.fromkeys(name for epoch in epochs for name in epoch))
    return table(
        names, [tuple(f"{epoch[name]:g}" if name in epoch else "" for name in names) for epoch in epochs]
    )
