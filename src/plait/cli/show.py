"""What commands print of each result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plait.cli import render


def show_plan(plan: dict[str, Any], *, json: bool) -> None:
    """Prints what a recipe would do."""
    if json:
        render.as_json(plan)
        return
    candidates = plan.get("candidates")
    render.facts({name: value for name, value in plan.items() if name != "candidates"})
    if candidates:
        render.table([planned_row(candidate) for candidate in candidates], right=("seconds", "memory"))


def planned_row(candidate: dict[str, Any]) -> dict[str, str]:
    """Returns one candidate of a comparison that is planned, as a row for people."""
    seconds, size = candidate.get("estimated_seconds"), candidate.get("estimated_bytes")
    return {
        "candidate": candidate["candidate"],
        "what": candidate["what"],
        "seconds": "–" if seconds is None else f"{seconds:,.0f}",
        "memory": "–" if size is None else f"{size / 2**20:,.0f} MiB",
        "tried": "yes" if candidate["tried"] else f"no: {candidate['why']}",
    }


def show_result(result: Any, *, json: bool) -> None:
    """Prints what a recipe made: a merged checkpoint, a student, or an ensemble."""
    shows: dict[str, Any] = {
        "merged": show_merged, "student": show_student, "ensemble": show_ensemble, "one_model": show_ensemble,
        "comparison": show_comparison,
        "adapter": show_adapter,
    }  # fmt: skip
    shows[result.artifact](result, json=json)


def show_adapter(merged: Any, *, json: bool) -> None:
    """Prints where an adapter lies, its rank and what truncation has cost."""
    if json:
        render.as_json({
            "output": str(merged.folder), "rank": merged.rank, "error": merged.error, "worst": list(merged.worst),
            "left_out": list(merged.left_out),
        })  # fmt: skip
        return
    lost = f"{100 * merged.error:.2g} % of its norm lost by truncation" if merged.error > 1e-6 else "exact"
    worst = f", at most {100 * merged.worst[1]:.2g} % in {merged.worst[0]}" if merged.error > 1e-6 else ""
    render.line(f"{merged.folder}: one adapter of rank {merged.rank}, {lost}{worst}")


def show_merged(merged: Any, *, json: bool) -> None:
    """Prints where a merged checkpoint lies and what it scored, or what an adapter made of several is."""
    if merged.artifact == "adapter":
        show_adapter(merged, json=json)
        return
    manifest = merged.manifest
    if json:
        render.as_json({
            "output": str(merged.folder), "tasks": list(merged.tasks), "method": manifest.recipe["method"],
            "scores": dict(manifest.scores), "refinement": dict(manifest.refinement), "heads": dict(manifest.heads),
        })  # fmt: skip
        return
    count = f"{len(merged.tasks)} task{'s' if len(merged.tasks) > 1 else ''}"
    what = f"one encoder, {count} ({', '.join(merged.tasks)})"
    if merged.language is not None:
        what = f"one language model of {', '.join(merged.tasks)}"
    render.line(f"{merged.folder}: {what}")
    for name, scores in manifest.scores.get("tasks", {}).items():
        render.line(f"  {name}: {scores['primary']} {scores['metrics'][scores['primary']]:.3f}")


def show_student(student: Any, *, json: bool) -> None:
    """Prints where a student lies, who taught it what, and what that cost."""
    report = student.report
    if json:
        render.as_json({"output": str(student.folder), **report})
        return
    render.line(f"{student.folder}: {len(report['labels'])} labels ({', '.join(report['labels'])})")
    for name, about in report["who_taught_what"]["teachers"].items():
        labels = ", ".join(report["teachers"][name]["labels"])
        told = (
            f"taught {100 * about['share']:.1f} %"
            if "share" in about
            else f"weighs {100 * about['mean_weight']:.1f} %"
        )
        render.line(f"  {name} {told} of the texts ({labels})")
    for label, taught in report["who_taught_what"].get("labels", {}).items():
        whom = ", ".join(f"{count} by {name}" for name, count in taught.items()) or "no text"
        render.line(f"  {label}: {whom}")
    show_panel(report["who_taught_what"])
    for number, before in enumerate(report.get("rounds_before", []), 1):
        show_routing(before, f"before the correction of round {number}: ")
    show_routing(report["who_taught_what"])
    for epoch in report["epochs"]:
        said = ", ".join(f"{name} {value:g}" for name, value in epoch.items() if name != "kept")
        render.line(f"  {said}{' (kept)' if epoch.get('kept') else ''}")
    cost = report["forward_equivalents"]
    stored = "" if cost["teachers_now"] else " (in the store already)"
    base = f" + base {cost['base']:.2f}" if cost["base"] else ""
    render.line(
        f"  forward passes per text: teachers {cost['teachers']:.2f}{stored} + student {cost['student']:.2f}{base} "
        f"= {cost['total']:.2f} (a backward pass counts as two)"
    )


def show_comparison(found: Any, *, json: bool) -> None:
    """Prints what each candidate reached and costs, which to take, and where the page lies."""
    from plait.comparison.words import advice, table

    if json:
        render.as_json({"output": str(found.folder), **found.report})
        return
    if rows := table(found.report):
        render.table(rows, title="kept: mean score relative to the sources", right=[*rows[0]][1:])
    for said in advice(found.report):
        render.line(said)
    if (folder := found.recommended and found.path()) is not None and folder:
        render.line(f"model {folder} · recipe {found.folder}/recipes/{found.recommended}.yaml")
    render.line(f"page {found.page}" if found.page is not None else f"answer {found.folder}/comparison.json")


def show_routing(who: dict[str, Any], when: str = "") -> None:
    """Prints how often the chosen teacher knows the text's label, where labels exist."""
    if routing := who.get("routing"):
        render.line(
            f"  {when}routing accuracy {routing['accuracy']:.3f} on {routing['labelled']} texts with labels"
        )


def show_panel(who: dict[str, Any]) -> None:
    """Prints what the gates of a joint one weigh, and how much of the corpus each teacher knows by their estimate."""
    if panel := who.get("panel"):
        gates = ", ".join(f"{name} {about['weight']:.2f}" for name, about in panel["gates"].items())
        known = ", ".join(f"{name} {100 * share:.0f} %" for name, share in panel["prior"].items())
        render.line(f"  gates weigh {gates}; estimated shares of the corpus: {known}")


def show_ensemble(saved: Any, *, json: bool) -> None:
    """Prints where an ensemble lies, what it is worth, weighs and costs."""
    report = saved.report
    if json:
        render.as_json({"output": str(saved.folder), **report})
        return
    sizes, costs = report["parameters"], report["forward_equivalents"]
    several = f"{report['members']} member{'s' if report['members'] > 1 else ''}"
    several = f"one model of {several}" if saved.plain else several
    render.line(
        f"{saved.folder}: {several} by {report['recipe']['method']['name']}, {sizes['saved']:,} parameters "
        f"({report['megabytes']:g} MB); as separate models {sizes['separate']:,}"
    )
    columns = dict.fromkeys((*SHOWN, report["recipe"].get("metric")))
    for epoch in report["epochs"]:
        shown = {name: epoch[name] for name in columns if name in epoch}
        kept = " (kept)" if epoch.get("kept") else ""
        render.line("  " + ", ".join(f"{name} {value:g}" for name, value in shown.items()) + kept)
    if taught := report.get("teachers"):
        texts = f"{report['data']['examples']} texts with labels and {report['unlabelled']} without"
        render.line(f"  taught by {', '.join(taught)} on {texts}")
    if found := report.get("validation"):
        primary, metrics = found["primary"], found["metrics"]
        alone = [scores[primary] for scores in found["sources"].values()]
        members = "" if saved.plain else f"; members alone {min(alone):.3f} to {max(alone):.3f}"
        render.line(f"  together: {primary} {metrics[primary]:.3f}{members}")
    render.line(
        f"  forward passes per example: {costs['training_step']:g} an epoch (a backward pass counts as two), "
        f"{costs['prediction']:g} a prediction"
    )


def show_scores(found: Any, *, json: bool, per_class: bool = False) -> None:
    """Prints what was scored: of an ensemble its members, of anything else a row for each task or file."""
    if json:
        classes = {"per_class": found.per_class()} if per_class else {}
        render.as_json({**found.to_dict(), **classes})
        return
    several = len(found.tasks) > 1
    if found.artifact == "ensemble":
        for name, scores in found.tasks.items():
            show_members(scores, f"{name}: " if several else "")
    if several or found.artifact != "ensemble":
        show_rows(found)
    if per_class:
        show_classes(found)


def show_rows(found: Any) -> None:
    """Prints a row for each task or file, the sources that were scored, and the mean."""
    render.table(found.rows(), right=("score", "source", "relative", "examples"))
    for scores in found.tasks.values():
        for name, metrics in scores.sources.items() if len(scores.sources) > 1 else ():
            render.line(f"  {name}: {scores.primary} {metrics[scores.primary]:.3f}")
    if found.mean_relative is not None and len(found.tasks) > 1:
        render.line(f"mean relative to the sources: {100 * found.mean_relative:.1f} %")


def show_classes(found: Any) -> None:
    """Prints precision, recall and F1 of each label."""
    for task, classes in found.per_class().items():
        rows = [
            {key: value if isinstance(value, str) else f"{value:g}" if isinstance(value, int) else f"{value:.3f}"
             for key, value in row.items()}
            for row in classes
        ]  # fmt: skip
        if rows:
            render.table(rows, title=task if len(found.tasks) > 1 else None, right=list(rows[0])[1:])


def show_members(scores: Any, name: str = "") -> None:
    """Prints the scores of all members together and of each alone, and how they differ."""
    together, names = scores.metrics, [scores.primary, *ALONE]
    columns = [name for name in dict.fromkeys(names) if name in together]
    rows = [
        {"": who, **{name: f"{found[name]:.3f}" for name in columns}}
        for who, found in {"together": together, **scores.sources}.items()
    ]
    around = "" if scores.interval is None else f", {scores.primary} together {scores.interval} (95 %)"
    render.table(rows, title=f"{name}{scores.examples} examples{around}", right=columns)
    others = {name: value for name, value in together.items() if name not in columns}
    render.line(", ".join(f"{name} {value:.4g}" for name, value in others.items()))


ALONE = ("nll", "calibration_error", "brier", "aurc", "mse", "spearman")
SHOWN = (
    "member",
    "epoch",
    "accuracy",
    "macro_f1",
    "pearson",
    "nll",
    "calibration_error",
    "consistency",
    "disagreement",
)


def show_demo(report: dict[str, Any], output: Path) -> None:
    """Prints the table of the demonstration and where everything lies."""
    tasks = list(report["rows"])
    sources = {
        "": "three separate models",
        **{t: f"{report['sources'][t]:.3f}" for t in tasks},
        "mean relative": "100.0 %",
    }
    rows = [
        {
            "": label,
            **{t: f"{row[t]:.3f}" for t in tasks},
            "mean relative": f"{100 * row['mean relative']:.1f} %",
        }
        for label, row in report["methods"].items()
    ]
    render.table(
        [sources, *rows],
        title="accuracy on held-back files, one encoder for three tasks",
        right=[*tasks, "mean relative"],
    )
    show_taught(report["amalgamation"], output)
    show_demo_members(report["ensemble"], output)
    render.line(
        f"data {output}/data · sources {output}/sources · merged {output}/comparison/candidates · report "
        f"{output}/report.json"
    )
    render.line(f"{report['seconds']:.0f} s. Next: plait inspect {output}/comparison; plait methods regmean")
    if (chosen := report["comparison"]["recommended"]) is not None:
        render.line(f"Recommended: {chosen['id']}. {chosen['reason']}")
    render.line(f"page {report['comparison']['page']}")


def show_taught(taught: dict[str, Any], output: Path) -> None:
    """Prints what teachers of half of the topics each score on all, alone and together, beside their student."""
    scores = {**taught["accuracy"], "for comparison: one model trained on labels of all": taught["supervised"]}
    rows = [{"": name, "accuracy": f"{score:.3f}"} for name, score in scores.items()]
    title = f"accuracy over all topics; two teachers know half of them each, {taught['texts']} texts without labels"
    render.table(rows, title=title, right=["accuracy"])
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in taught["taught"].items())
    render.line(f"who taught the texts: {shares}; teachers, student and posteriors {output}/amalgamation")


def show_demo_members(made: dict[str, Any], output: Path) -> None:
    """Prints what several models score, alone and together, beside the one model that they taught."""
    rows = [
        {"": name, **{key.replace("_", " "): f"{score:.3f}" for key, score in scores.items()}}
        for name, scores in made["scores"].items()
    ]
    render.table(rows, title="an ensemble in one model", right=list(rows[0])[1:])
    sizes = {name: made["parameters"][name] / 1e6 for name in ("saved", "separate")}
    render.line(
        f"the model {output}/ensemble: {sizes['saved']:.1f} million parameters, not {sizes['separate']:.1f}; "
        "a prediction takes one encoder pass"
    )
