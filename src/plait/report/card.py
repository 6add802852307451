"""The model card written beside a merged checkpoint: what it is, how to use it, its recipe and its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from plait.errors import printable
from plait.merging.manifest import BASE, Manifest

USE = """```python
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
        USE.format(folder=name, task=next(iter(manifest.tasks))),
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
