"""The model card of an ensemble: what its members share, how they were trained, what they are worth and weigh."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from plait.report.card import as_markdown, table
from plait.report.student import epochs_table

USE = """```python
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
    folder, token = str(recipe["output"]), report["kind"] == "token_classification"
    use = SEPARATE if report["separate"] else PASSES if recipe["method"]["name"] == "mc_dropout" else USE
    use = PLAIN if report.get("plain") else use
    task = "TokenClassification" if token else "SequenceClassification"
    tag = "token-classification" if token else "text-classification"
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: {tag}\ntags:\n- plait\n- ensemble\n---",
        f"# {as_markdown(PurePath(folder).name)}",
        f"{sentence(report)}.",
        "## Use",
        use.format(folder=folder, task=task, members=report["members"]),
        *([] if "teachers" not in report else ["## Teachers", teachers_table(report["teachers"])]),
        *([] if "validation" not in report else ["## Scores", scores_table(report["validation"])]),
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


def teachers_table(teachers: Mapping[str, Any]) -> str:
    """Returns who taught the model, and where they are."""
    lines = [(name, about["architecture"], about["origin"] or "not kept") for name, about in teachers.items()]
    return table(("teacher", "class", "model"), lines)


def scores_table(scores: Mapping[str, Any]) -> str:
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
