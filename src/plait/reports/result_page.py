"""The page of one result: a merged checkpoint, a student, an ensemble, a fine-tuned model; from its record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plait.reports.blocks import Block, Chart, Listing, Page, Prose, Section, Table, Verdict
from plait.reports.charts import Point, bars
from plait.reports.comparison import Conflicts, NodeImportance, Routing
from plait.reports.comparison_page import as_yaml, licences
from plait.reports.front import portable
from plait.reports.inside import conflict_section, importance_section
from plait.reports.record import BASE
from plait.reports.training_blocks import diversity_table, history_charts, routing_chart
from plait.reports.words import NONE, duration, millions, number, plain, share

CALLED = {
    "merged": "A merged checkpoint", "student": "A student of several teachers", "ensemble": "An ensemble",
    "one_model": "One model that an ensemble became", "members": "Members that became one model",
    "finetuned": "A fine-tuned checkpoint",
}  # fmt: skip
MADE = {
    "merged": "merge",
    "student": "amalgamate",
    "ensemble": "ensemble",
    "one_model": "ensemble",
    "members": "ensemble",
}
QUANTITIES = (
    "loss",
    "accuracy",
    "macro_f1",
    "pearson",
    "mse",
    "nll",
    "calibration_error",
    "agreement",
    "divergence",
)
DIVERSITY = ("disagreement", "diversity", "oracle_accuracy", "mutual_information", "consistency")
Record = Mapping[str, Any]


def result_page(
    record: Record,
    kind: str,
    name: str,
    *,
    conflicts: Mapping[str, Any] | None = None,
    importance: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Page:
    """Returns the page; parts that were not recorded are left out.

    Args:
        record: what `plait.json` holds.
        kind: what lies in the folder.
        name: of the folder.
        conflicts: where its sources conflict, as `conflict_map` says it.
        importance: by source its heads and neurons.
        notes: what a reader should know first.
    """
    told = portable(dict(record))
    seen = Conflicts.model_validate(conflicts) if conflicts else None
    nodes = {who: NodeImportance.model_validate(one) for who, one in (importance or {}).items()}
    found = (
        scores_section(told, kind), routing_part(told), diversity_part(told), training_part(told),
        conflict_section(seen), importance_section(nodes), models_section(record), recipe_part(told),
        provenance_part(told),
    )  # fmt: skip
    sections = tuple(section for section in found if section is not None)
    return Page(
        title=name,
        subtitle=CALLED.get(kind, kind),
        sections=sections,
        verdict=Verdict("What it is", sentence(told, kind), "", facts(told)),
        notes=(*notes, *map(str, told.get("notes") or ())),
        foot="Made by plait report.",
    )


def sentence(record: Record, kind: str) -> str:
    """Returns in a few words what it was made of and how."""
    recipe, count = record.get("recipe") or {}, len(models(record))
    method = (recipe.get("method") or recipe.get("objective") or {}).get("name")
    how = f" by {method}" if method else ""
    if kind == "merged":
        return f"{count} checkpoints merged{how}, {len(record.get('tasks') or {})} tasks"
    if kind == "student":
        texts = (record.get("data") or {}).get("texts")
        return f"{count} teachers, {len(record.get('labels') or ())} labels, {plain(texts)} texts{how}"
    if kind == "finetuned":
        return f"Fine-tuned from {plain(record.get('base'))}"
    return f"{plain(record.get('members'))} members{how}"


def facts(record: Record) -> tuple[tuple[str, str, str], ...]:
    """Returns the figures that stand at the top."""
    tasks = (record.get("scores") or {}).get("tasks") or {}
    relative = {task: one["relative"] for task, one in tasks.items() if one.get("relative") is not None}
    found = []
    if relative:
        worst = min(relative, key=relative.__getitem__)
        found.append(
            (
                "mean relative score",
                share(sum(relative.values()) / len(relative)),
                f"over {len(relative)} tasks",
            )
        )
        found.append(("worst task", share(relative[worst]), worst))
    sizes = record.get("parameters")
    if isinstance(sizes, Mapping) and sizes.get("saved"):
        found.append(
            ("parameters", millions(sizes["saved"]), f"{millions(sizes.get('separate'))} as separate models")
        )
    if record.get("seconds") is not None:
        found.append(("to make", duration(record["seconds"]), ""))
    return tuple(found)


def models(record: Record) -> dict[str, Mapping[str, Any]]:
    """Returns the models it was made from, by name, without the base."""
    sources = record.get("sources") or {}
    listed = (
        sources
        if isinstance(sources, Mapping)
        else {f"source {at}": one for at, one in enumerate(sources, 1)}
    )
    taught = record.get("teachers") or {}
    return {
        name: about
        for name, about in {**listed, **taught}.items()
        if name != BASE and isinstance(about, Mapping)
    }


def scores_section(record: Record, kind: str) -> Section | None:
    """Returns a chart per task, or of the validation data, beside the sources or members."""
    tasks = dict((record.get("scores") or {}).get("tasks") or {})
    validation = record.get("validation")
    if not tasks and isinstance(validation, Mapping) and validation:
        flat = {n: v for n, v in validation.items() if isinstance(v, int | float)}
        tasks = {"validation data": validation if "metrics" in validation else {"metrics": flat}}
    charts = [
        chart for at, (n, one) in enumerate(tasks.items()) if (chart := _scores(n, one, kind, at)) is not None
    ]
    return Section("scores", "Scores", "Bars begin at zero.", charts) if charts else None


def _scores(name: str, one: Mapping[str, Any], kind: str, at: int) -> Chart | None:
    metrics = {n: v for n, v in (one.get("metrics") or {}).items() if isinstance(v, int | float)}
    if not metrics:
        return None
    primary = str(one.get("primary") or next(iter(metrics)))
    around = one.get("interval")
    interval = tuple(around[:2]) if isinstance(around, list | tuple) and len(around) >= 2 else None
    what = "together" if kind in ("ensemble", "members") else "this model"
    others = {
        who: told.get(primary)
        for who, told in (one.get("sources") or {}).items()
        if isinstance(told, Mapping)
    }
    points = [Point(what, float(metrics.get(primary, 0.0)), interval, MADE.get(kind, ""), strong=True)]
    points += [
        Point(who, float(v), way="separate") for who, v in others.items() if isinstance(v, int | float)
    ]
    rows = tuple((metric.replace("_", " "), number(value)) for metric, value in metrics.items())
    alone = tuple((who, number(value)) for who, value in others.items())
    table = Table(f"{name}: all metrics, and {primary} of the others", ("metric", "value"), rows + alone)
    counted = f", {one['examples']} rows" if one.get("examples") else ""
    return Chart(
        f"scores-{at + 1}", f"{name}: {primary.replace('_', ' ')}{counted}", "", bars(points, primary), table
    )


def routing_part(record: Record) -> Section | None:
    """Returns who taught which label."""
    who = record.get("who_taught_what") or {}
    labels, teachers = who.get("labels") or {}, list(who.get("teachers") or {})
    taught = {label: by for label, by in labels.items() if by and sum(by.values())}
    if not teachers:
        return None
    told = tuple((n, share(t.get("share", t.get("mean_weight")))) for n, t in who["teachers"].items())
    table = Table("Share of all texts that each teacher taught", ("teacher", "share"), told)
    if not taught:
        return Section("routing", "Who taught what", "", [table])
    rows = [[by.get(name, 0) / sum(by.values()) for name in teachers] for by in taught.values()]
    routing = Routing(labels=tuple(taught), teachers=tuple(teachers), share=tuple(rows))
    return Section("routing", "Who taught what", "", [routing_chart("texts", routing, "routing-1"), table])


def diversity_part(record: Record) -> Section | None:
    """Returns how members differ."""
    validation = record.get("validation")
    metrics = validation.get("metrics") if isinstance(validation, Mapping) else None
    found = {key: value for key, value in (metrics or {}).items() if key in DIVERSITY}
    if not found or (record.get("members") or 1) < 2:
        return None
    members = {"members": record["members"], **found}
    return Section(
        "diversity", "How its members differ", "", [diversity_table([("validation data", members)])]
    )


def training_part(record: Record) -> Section | None:
    """Returns courses of losses and of what was scored after each epoch."""
    refined = (record.get("refinement") or {}).get("epochs") or []
    entries = [*(record.get("losses") or []), *(record.get("epochs") or []), *refined]
    charts = history_charts(list(courses(entries).items()))
    return Section("training", "How training went", "", charts) if charts else None


def courses(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Returns recorded rows as points by member: one quantity at one step or epoch each; old rows are counted."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        who = f"member {entry['member']:.0f}" if isinstance(entry.get("member"), int | float) else "training"
        axis = "step" if "step" in entry else "epoch"
        entry = {"epoch": 1 + len({point.get("epoch") for point in found.get(who, [])}), **entry}  # noqa: PLW2901
        for quantity in QUANTITIES:
            value = entry.get(quantity)
            if axis in entry and isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(who, []).append({axis: entry[axis], "name": quantity, "value": value})
    return found


def models_section(record: Record) -> Section | None:
    """Returns the models it was made from, with their licences and digests."""
    found = models(record)
    if not found:
        return None
    rows = tuple(
        (name, plain(portable(one.get("hub") or one.get("origin"))), plain(one.get("architecture")),
         plain(one.get("license")), plain(one.get("digest")))
        for name, one in found.items()
    )  # fmt: skip
    header = ("name", "model", "class", "licence", "digest")
    table = Table("What it was made from", header, rows, header[1:], stack=True)
    return Section(
        "models",
        "Sources and licences",
        "",
        [table, Prose((licences({name: one.get("license") for name, one in found.items()}),))],
    )


def recipe_part(record: Record) -> Section | None:
    """Returns the recipe, ready to copy."""
    recipe = record.get("recipe") or record.get("options")
    if not isinstance(recipe, Mapping) or not recipe:
        return None
    what = "Recipe" if record.get("recipe") else "Options"
    lead = (
        "Save it as recipe.yaml and run plait run recipe.yaml. Of paths the last name is shown: put yours."
        if record.get("recipe")
        else ""
    )
    return Section("recipes", what, lead, [Listing(what, as_yaml(recipe), opened=True)])


def provenance_part(record: Record) -> Section:
    """Returns versions, data, statistics."""
    facts = {**(record.get("versions") or {}), "job": record.get("job")}
    blocks: list[Block] = [
        Table("Versions", ("what", "value"), tuple((n, plain(v)) for n, v in facts.items() if v), ("value",))
    ]
    for key, title in (("data", "Data"), ("settings", "Settings")):
        told = record.get(key)
        if isinstance(told, Mapping) and told:
            blocks.append(
                Table(title, ("what", "value"), tuple((n, plain(v)) for n, v in told.items()), ("value",))
            )
    statistics = record.get("statistics") or {}
    rows = tuple(
        (n, plain(s.get("estimator")), plain(s.get("examples")), plain(s.get("data")))
        for n, s in statistics.items()
    )
    if rows:
        header = ("source", "estimator", "examples", "data")
        blocks.append(Table("Statistics", header, rows, ("estimator", "data")))
    return Section("provenance", "Provenance", "", blocks)


__all__ = ["NONE", "courses", "models", "result_page"]
