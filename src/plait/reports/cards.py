"""Model cards of merged checkpoints, students, ensembles, and ordinary checkpoints that were fine-tuned or exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from plait.errors import printable
from plait.reports.front import PIPELINES, Front, Origins, Scored, folder_name, licence_told, portable
from plait.reports.record import BASE, Manifest
from plait.reports.searched import searched

MERGED_USE = """```python
import plait

merged = plait.load("{folder}")
merged.predict(["Some text."])                 # every task from one encoder pass
model = merged.task("{task}")                  # an ordinary transformers model
```

{without}The top of the folder is the encoder: as a classifier it gets a random head unless it has one task alone.
`plait export {folder} --task {task} -o plain` writes one task as a checkpoint without links, for any place."""


WITHOUT_PLAIT = """Without Plait, `transformers` opens each task's folder, which shares the encoder's file by a link:

```python
from transformers import pipeline

answer = pipeline("{pipeline}", model="{folder}/tasks/{task}")
```\n
"""


def merged_use(manifest: Manifest, name: str) -> str:
    """Returns how to use a merged checkpoint; only tasks with a head make a pipeline."""
    headed = next((task for task in manifest.tasks.values() if task.kind in PIPELINES), None)
    told = {"folder": name, "pipeline": PIPELINES[headed.kind], "task": headed.name} if headed else None
    without = WITHOUT_PLAIT.format(**told) if told else ""
    return MERGED_USE.format(folder=name, task=next(iter(manifest.tasks)), without=without)


def model_card(manifest: Manifest) -> str:
    """Returns the card as Markdown with the front matter that model hubs read."""
    origins = named_sources(manifest)
    told = ("sources", "recipe", "scores", "refinement", "heads", "search")
    manifest = replace(manifest, **{part: portable(getattr(manifest, part)) for part in told})
    name = folder_name(manifest.recipe.get("output", "merged"))
    method = manifest.recipe.get("method", {})
    parts = [
        Front(name, "plait", ["merge"], "merge", origins, scores=merged_scores(manifest)).text(),
        f"# {as_markdown(name)}",
        f"{sum(name != BASE for name in manifest.sources)} checkpoints merged with `{method.get('name', 'average')}`"
        f"{' and refined on unlabelled texts' if manifest.refinement.get('kept') else ''} by Plait: one encoder, "
        f"{len(manifest.tasks)} task heads.",
        "## Use",
        merged_use(manifest, name),
        "## Tasks",
        tasks_table(manifest),
        *([] if not manifest.scores else ["## Scores", scores_table(manifest.scores)]),
        *([] if not manifest.search else ["## Search", searched(manifest.search, table)]),
        *([] if not manifest.refinement else ["## Refinement", refinement(manifest.refinement)]),
        *([] if not manifest.heads else ["## Heads", aligned(manifest.heads)]),
        "## Sources",
        sources_table(manifest),
        "## Licence",
        licence_told(origins),
        "## Recipe",
        "```yaml\n" + yaml.safe_dump(dict(manifest.recipe), sort_keys=False, allow_unicode=True) + "```",
        "Made with "
        + ", ".join(f"{package} {version}" for package, version in manifest.versions.items())
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def named_sources(manifest: Manifest) -> Origins:
    """Returns the sources of a merge without its base."""
    return {name: source for name, source in manifest.sources.items() if name != BASE}


def merged_scores(manifest: Manifest, only: str | None = None) -> list[Scored]:
    """Returns what the tasks of a merge scored, or one of them."""
    kinds = {name: PIPELINES.get(task.kind, "text-classification") for name, task in manifest.tasks.items()}
    return [
        Scored(kinds.get(name, "text-classification"), name, task["metrics"])
        for name, task in manifest.scores.get("tasks", {}).items()
        if only in (None, name)
    ]


def plain_card(front: Front, sentence: str, *, use: str = "", rest: Sequence[str] = ()) -> str:
    """Returns the card of an ordinary checkpoint as Markdown.

    Args:
        front: what hubs read.
        sentence: what the model is.
        use: how it is used; default by a pipeline, where it has one.
        rest: sections that follow.
    """
    use = use or PIPELINE_USE.format(folder=front.name, pipeline=front.pipeline)
    usage = ["## Use", use] if front.pipeline else []
    licence = ["## Licence", licence_told(front.origins)]
    return "\n\n".join([front.text(), f"# {front.name}", sentence, *usage, *rest, *licence]) + "\n"


PIPELINE_USE = """```python
from transformers import pipeline

model = pipeline("{pipeline}", model="{folder}")
```"""


def finetuned_card(report: Mapping[str, Any], name: str) -> str:
    """Returns the card of a fine-tuned checkpoint; `start` in its report is what is known of its base."""
    report = portable(report)
    pipeline = PIPELINES.get(report["head"], "text-classification")
    scores = [Scored(pipeline, "validation data", report["validation"])] if "validation" in report else []
    front = Front(name, "transformers", ["finetune"], "finetune", {"the base": report["start"]}, pipeline, scores)
    rows = [(metric, f"{value:.4g}") for metric, value in report.get("validation", {}).items()]
    rest = ["## Scores", table(("metric", "on validation data"), rows)] if rows else []
    options = yaml.safe_dump(dict(report["options"]), sort_keys=False, allow_unicode=True)
    rest += ["## Training", f"```yaml\n{options}```", "Made with " + made_with(report["versions"])]
    data = f"{report['data']['examples']} examples of {report['data']['source']}"
    return plain_card(front, f"Fine-tuned from {report['base']} on {data}.", rest=rest)


def exported_card(manifest: Manifest, task: str, name: str) -> str:
    """Returns the card of one task of a merged checkpoint, written as an ordinary one."""
    about, origins = manifest.tasks[task], named_sources(manifest)
    scores = merged_scores(manifest, task)
    front = Front(name, "transformers", ["merge"], "merge", origins, PIPELINES.get(about.kind), scores)
    method = manifest.recipe.get("method", {}).get("name", "average")
    sentence = (
        f"The task `{task}` of {len(origins)} checkpoints ({', '.join(origins)}) merged with `{method}` by Plait, as "
        "an ordinary checkpoint."
    )
    rest = ["## Labels", ", ".join(about.labels)] if about.labels else []
    return plain_card(front, sentence, rest=[*rest, "Made with " + made_with(manifest.versions)])


def exported_ensemble_card(report: Mapping[str, Any], name: str, what: str) -> str:
    """Returns the card of an ordinary checkpoint that an ensemble was exported to; `what` says which part of it."""
    if not report:  # the record is gone
        front = Front(name, "transformers", ["ensemble"], "finetune", {"the ensemble": {}}, "text-classification")
        return plain_card(front, f"{what} of an ensemble, as an ordinary checkpoint.")
    report = portable(report)
    front = replace(ensemble_front(report), name=name, scores=())
    return plain_card(front, f"{what} of an ensemble, as an ordinary checkpoint: {sentence(report)}.")


def made_with(versions: Mapping[str, str]) -> str:
    """Returns packages with their versions, as the end of a sentence."""
    return ", ".join(f"{package} {version}" for package, version in versions.items()) + "."


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Returns a Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(map(as_markdown, line)) + " |" for line in lines)


def as_markdown(text: str) -> str:
    """Returns a name as Markdown shows it and does not obey it: labels and paths come from files."""
    plain = printable(" ".join(text.split()))
    for sign, spelled in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`"), ("[", "\\[")):
        plain = plain.replace(sign, spelled)
    return plain


def tasks_table(manifest: Manifest) -> str:
    """Returns the tasks with their heads and labels."""
    rows = [
        (task.name, task.architecture, ", ".join(task.labels or ("(value)",)), ", ".join(task.sources))
        for task in manifest.tasks.values()
    ]
    return table(("task", "head", "labels", "sources"), rows)


def sources_table(manifest: Manifest) -> str:
    """Returns the sources with their digests."""
    rows = [(name, str(s["origin"]), str(s.get("digest", ""))) for name, s in manifest.sources.items()]
    return table(("source", "model", "digest (xxh3-128)"), rows)


def refinement(found: Mapping[str, Any]) -> str:
    """Returns what the merged encoder learned from, and how far it agrees with its sources since."""
    learned = "logits" if found["on"] == "logits" else "hidden states"
    who = f"the encoder{' and the heads' if found['heads'] else ''}"
    said = (
        f"After the merge {who} learned the sources' own {learned} in {found['passes']} label-free passes over texts "
        f"of each source; the weights are those after pass {found['best_pass']}."
        if found["kept"]
        else f"In {found['passes']} label-free passes {who} learned the sources' own {learned}, which did not raise "
        "the agreement with them: the weights are those of the merge."
    )
    said += (
        " *Agreement* is the share of held-back texts that the merged model answers as the source does."
    )
    rows = [
        (
            name,
            f"{found['texts'][name]} of {found['data'][name]['source']}",
            *(f"{one[when]:.3f}" for when in ("before", "after")),
        )
        for name, one in found["by_source"].items()
    ]
    return f"{said}\n\n{table(('source', 'texts', 'agreement before', 'after'), rows)}"


def aligned(found: Mapping[str, Any]) -> str:
    """Returns how far heads were fitted to the merged encoder."""
    said = (
        f"Heads were fitted to the merged encoder by a {found['map']} map on unlabelled texts, folded into their first "
        "layer. *Error* is that of the states which they read, in variances of the source's."
    )
    rows = [(task, *(f"{one[when]:.3f}" for when in ("before", "after"))) for task, one in found["error"].items()]
    return f"{said}\n\n{table(('task', 'error before', 'after'), rows)}"


def scores_table(scores: Mapping[str, Any]) -> str:
    """Returns the scores with what they are relative to the sources."""
    rows = []
    for name, task in scores["tasks"].items():
        relative = "–" if task["relative"] is None else f"{100 * task['relative']:.1f} %"
        rows.append(
            (
                name,
                task["primary"],
                f"{task['metrics'][task['primary']]:.3f}",
                relative,
                str(task["examples"]),
            )
        )
    return table(("task", "metric", "score", "relative to source", "examples"), rows)


STUDENT_USE = """```python
from transformers import pipeline

classify = pipeline("text-classification", model="{folder}")
classify("Some text.")
```"""


def student_card(report: Mapping[str, Any]) -> str:
    """Returns the card as Markdown with the front matter that model hubs read."""
    origins = dict(report["teachers"]) | ({} if not report.get("start") else {"the start": report["start"]})
    report = portable(report)
    folder, recipe = folder_name(report["recipe"]["output"]), report["recipe"]
    cost, pipeline = report["forward_equivalents"], "text-classification"
    scores = [Scored(pipeline, "validation data", report["validation"])] if "validation" in report else []
    # Taught by its teachers, but made from what it starts from: only that is a base.
    taught = "the start" in origins
    bases = {n: {**o, "hub": o.get("hub") if n == "the start" or not taught else None} for n, o in origins.items()}
    parts = [
        Front(folder, "transformers", ["amalgamation"], "finetune", bases, pipeline, scores).text(),
        f"# {as_markdown(folder)}",
        f"{len(report['teachers'])} teachers taught this model {len(report['labels'])} labels from "
        f"{report['data']['texts']} texts without labels, by Plait: {method(recipe)}.",
        "## Use",
        STUDENT_USE.format(folder=folder),
        "## Who taught what",
        teachers_table(report),
        *labels_table(report["who_taught_what"]),
        *gates_told(report["who_taught_what"]),
        *rounds_told(report),
        "## Training",
        epochs_table(report["epochs"]) if report["epochs"] else "No texts were held back.",
        f"Forward passes per text, a backward pass counted as two: {cost['teachers']:g} of the teachers, "
        f"{cost.get('base', 0):g} of the base and {cost['student']:g} of the student.",
        "## Licence",
        licence_told(origins),
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
        names, [tuple(spelled(epoch[name]) if name in epoch else "" for name in names) for epoch in epochs]
    )


def spelled(value: float | bool) -> str:
    """Returns a cell: a number, or `yes` under `kept`."""
    return "yes" if value is True else f"{value:g}"


def labels_table(who: Mapping[str, Any]) -> list[str]:
    """Returns how many texts of each label every teacher taught; nothing where no gate chose among them."""
    if "labels" not in who:
        return []
    teachers = tuple(who["teachers"])
    rows = [(label, *(str(by.get(name, 0)) for name in teachers)) for label, by in who["labels"].items()]
    return ["Texts that each teacher taught, by the label of their target:", table(("label", *teachers), rows)]


ENSEMBLE_USE = """```python
import plait

model = plait.load("{folder}")                 # a transformers model: ordinary outputs, the mean of the members
model(**inputs, output_members=True).member_logits
```

`AutoModelFor{task}.from_pretrained("{folder}")` and `pipeline` know it after `import plait`;
`plait evaluate {folder} --data FILE` scores its members alone and together."""
SEPARATE = """Each folder under `members` is a model of its own;
`plait evaluate {folder} --data FILE` asks all of them."""
PASSES = """`plait.load("{folder}")`, `AutoModelFor{task}.from_pretrained("{folder}")` and `pipeline` (after
`import plait`) give one pass without dropout. The members are {members} passes with dropout:
`plait evaluate {folder} --data FILE` takes them, and scores them alone and together."""
PLAIN = """```python
from transformers import pipeline

classify = pipeline("text-classification", model="{folder}")
classify("Some text.")
```

An ordinary checkpoint: `AutoModelFor{task}.from_pretrained("{folder}")` opens it without Plait, and
`plait evaluate {folder} --data FILE` scores it, beside the members that taught it where they were kept."""
PRIMARY = ("accuracy", "macro_f1", "pearson", "mse")
SHOWN = ("nll", "calibration_error", "consistency", "diversity", "disagreement", "oracle_accuracy")


def ensemble_card(report: Mapping[str, Any]) -> str:
    """Returns the card as Markdown with the front matter that model hubs read."""
    origins = ensemble_origins(report)
    report = portable(report)
    recipe = report["recipe"]
    folder, token = folder_name(recipe["output"]), report["head_kind"] == "token_classification"
    use = SEPARATE if report["separate"] else PASSES if recipe["method"]["name"] == "mc_dropout" else ENSEMBLE_USE
    use = PLAIN if report.get("plain") else use
    task = "TokenClassification" if token else "SequenceClassification"
    parts = [
        ensemble_front(report).text(),
        f"# {as_markdown(folder)}",
        f"{sentence(report)}.",
        "## Use",
        use.format(folder=folder, task=task, members=report["members"]),
        *([] if "teachers" not in report else ["## Teachers", ensemble_teachers_table(report["teachers"])]),
        *([] if "validation" not in report else ["## Scores", ensemble_scores_table(report["validation"])]),
        "## Size and cost",
        costs_table(report),
        *([] if not report["epochs"] else ["## Training", epochs_table(shown_epochs(report["epochs"]))]),
        "## Licence",
        licence_told(origins),
        "## Recipe",
        "```yaml\n" + yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True) + "```",
        "Made with " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def ensemble_origins(report: Mapping[str, Any]) -> Origins:
    """Returns the models that an ensemble was made from and taught by."""
    sources = {f"source {at}": source for at, source in enumerate(report.get("sources", ()), 1)}
    return {**sources, **{f"teacher {name}": about for name, about in report.get("teachers", {}).items()}}


def ensemble_front(report: Mapping[str, Any]) -> Front:
    """Returns what hubs read of an ensemble: its base, or the models that became its members."""
    pipeline = PIPELINES.get(report["head_kind"], "text-classification")
    origins = ensemble_origins(report)
    own = {n: o if n.startswith("source") else {**o, "hub": None} for n, o in origins.items()}
    scores = [Scored(pipeline, "validation data", report["validation"]["metrics"])] if report.get("validation") else []
    relation = "merge" if report["recipe"].get("sources") and not report.get("teachers") else "finetune"
    return Front(folder_name(report["recipe"]["output"]), "transformers", ["ensemble"], relation, own, pipeline, scores)


def shown_epochs(epochs: list[dict[str, float]]) -> list[dict[str, float]]:
    """Returns of each epoch's scores those that fit into a table."""
    kept = ("member", "epoch", "kept", *PRIMARY, *SHOWN[:4])
    return [{name: epoch[name] for name in kept if name in epoch} for epoch in epochs]


def sentence(report: Mapping[str, Any]) -> str:
    """Returns in one sentence what the ensemble is."""
    recipe, members = report["recipe"], report["members"]
    start = recipe.get("base") or ", ".join(recipe.get("sources", ()))
    who = f"{members} member{'s' if members > 1 else ''} from {start}"
    sharing = "" if report["shared_layers"] is None else (
        f", {report['shared_layers']} of {report['layers']} layers shared"
    )  # fmt: skip
    method, examples = recipe["method"]["name"], report["data"]["examples"]
    if method == "mc_dropout":
        who = f"one model from {start}, asked {members} times with dropout,"
    trained = f"trained on {examples} examples" if examples else "put together without training"
    if report.get("plain"):
        who = f"one model of {who}"
    if "teachers" in report:
        trained += f" and {report['unlabelled']} texts without labels" if report["unlabelled"] else ""
        what = "one model" if report.get("plain") else f"{members} heads"
        who = f"{what} from {recipe['base']}, taught by {members} models,"
    if "averaged" in report:
        what = "epochs" if method == "swa" else "members"
        trained += f", the mean of {what} {', '.join(map(str, report['averaged']))}"
    return f"{who} by Plait with `{method}`{sharing}, {trained}"


def ensemble_teachers_table(teachers: Mapping[str, Any]) -> str:
    """Returns who taught the model, and where they are."""
    lines = [(name, about["architecture"], about["origin"] or "not kept") for name, about in teachers.items()]
    return table(("teacher", "class", "model"), lines)


def ensemble_scores_table(scores: Mapping[str, Any]) -> str:
    """Returns the scores of all members together and of each alone."""
    names = [scores["primary"], *(name for name in SHOWN if name in scores["metrics"])]
    if len(scores["sources"]) < 2:  # a member of one is the whole
        scores = {**scores, "sources": {}}
        names = [name for name in names if name in ("nll", "calibration_error", scores["primary"])]
    answers = {"together": scores["metrics"], **scores["sources"]}
    lines = [
        (who, *(f"{found[name]:.3f}" if name in found else "" for name in names))
        for who, found in answers.items()
    ]
    return table(("", *names), lines)


def costs_table(report: Mapping[str, Any]) -> str:
    """Returns parameters, megabytes, and forward passes per example."""
    sizes, costs = report["parameters"], report["forward_equivalents"]
    lines = [
        ("parameters", f"{sizes['saved']:,}"),
        ("parameters of as many separate models", f"{sizes['separate']:,}"),
        ("megabytes", f"{report['megabytes']:,}"),
        ("forward passes per example and epoch (a backward pass counts as two)", f"{costs['training_step']:g}"),
        ("forward passes per prediction", f"{costs['prediction']:g}"),
    ]  # fmt: skip
    return table(("what", "how much"), lines)
