"""Model cards of merged checkpoints, students and ensembles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from plait.errors import printable
from plait.report.record import BASE, Manifest

MERGED_USE = """```python
import plait

merged = plait.load("{folder}")
merged.predict(["Some text."])                 # every task from one encoder pass
model = merged.task("{task}")                  # an ordinary transformers model
```

`plait export {folder} --task {task} -o plain` writes an ordinary `transformers` checkpoint of one task."""


def model_card(manifest: Manifest) -> str:
    """Returns the card as Markdown with the front matter that model hubs read."""
    name = str(manifest.recipe.get("output", "merged"))
    method = manifest.recipe.get("method", {})
    parts = [
        "---\nlibrary_name: plait\ntags:\n- plait\n- merge\n---",
        f"# {as_markdown(name.rstrip('/').rpartition('/')[2])}",
        f"{sum(name != BASE for name in manifest.sources)} checkpoints merged with `{method.get('name', 'average')}`"
        f"{' and refined on unlabelled texts' if manifest.refinement.get('kept') else ''} by Plait: one encoder, "
        f"{len(manifest.tasks)} task heads.",
        "## Use",
        MERGED_USE.format(folder=name, task=next(iter(manifest.tasks))),
        "## Tasks",
        tasks_table(manifest),
        *([] if not manifest.scores else ["## Scores", scores_table(manifest.scores)]),
        *([] if not manifest.refinement else ["## Refinement", refinement(manifest.refinement)]),
        *([] if not manifest.heads else ["## Heads", aligned(manifest.heads)]),
        "## Sources",
        sources_table(manifest),
        "## Recipe",
        "```yaml\n" + yaml.safe_dump(dict(manifest.recipe), sort_keys=False, allow_unicode=True) + "```",
        "Made with "
        + ", ".join(f"{package} {version}" for package, version in manifest.versions.items())
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


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
    folder, recipe = str(report["recipe"]["output"]), report["recipe"]
    cost = report["forward_equivalents"]
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-classification\ntags:\n- plait\n- amalgamation\n---",
        f"# {as_markdown(PurePath(folder).name)}",
        f"{len(report['teachers'])} teachers taught this model {len(report['labels'])} labels from "
        f"{report['data']['texts']} texts without labels, by Plait: {method(recipe)}.",
        "## Use",
        STUDENT_USE.format(folder=folder),
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
    recipe = report["recipe"]
    folder, token = str(recipe["output"]), report["head_kind"] == "token_classification"
    use = SEPARATE if report["separate"] else PASSES if recipe["method"]["name"] == "mc_dropout" else ENSEMBLE_USE
    use = PLAIN if report.get("plain") else use
    task = "TokenClassification" if token else "SequenceClassification"
    tag = "token-classification" if token else "text-classification"
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: {tag}\ntags:\n- plait\n- ensemble\n---",
        f"# {as_markdown(PurePath(folder).name)}",
        f"{sentence(report)}.",
        "## Use",
        use.format(folder=folder, task=task, members=report["members"]),
        *([] if "teachers" not in report else ["## Teachers", ensemble_teachers_table(report["teachers"])]),
        *([] if "validation" not in report else ["## Scores", ensemble_scores_table(report["validation"])]),
        "## Size and cost",
        costs_table(report),
        *([] if not report["epochs"] else ["## Training", epochs_table(shown_epochs(report["epochs"]))]),
        "## Recipe",
        "```yaml\n" + yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True) + "```",
        "Made with " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


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
