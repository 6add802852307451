"""Commands that answer questions: evaluate, inspect, methods, cache."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from plait.cli import render
from plait.cli.app import app
from plait.cli.options import (
    BatchSize,
    Json,
    LabelColumn,
    LabelNames,
    MaxLength,
    Names,
    PairColumn,
    Quiet,
    Revision,
    Seed,
    TextColumn,
    Trust,
    label_names,
    named_or_alone,
    spec,
)
from plait.cli.show import show_scores


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Checkpoint to score: merged, an ensemble, a student or a plain one.")],
    data: Names = None,
    sources: Annotated[
        bool, typer.Option("--sources/--no-sources", help="Score its sources or members too.")
    ] = True,
    out_of_scope: Annotated[
        str | None,
        typer.Option("--out-of-scope", help="FILE of texts that belong to no class, to see whether they are doubted."),
    ] = None,
    predictions: Annotated[
        str | None,
        typer.Option("--predictions", help="FILE to write each row's label and prediction to: .csv, .jsonl, .parquet."),
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Precision, recall and F1 of each label.")
    ] = False,
    resamples: Annotated[
        int, typer.Option("--resamples", min=0, help="Bootstrap resamples for the interval; 0 for none.")
    ] = 1000,
    examples: Annotated[
        int | None, typer.Option("--examples", min=1, help="Size of a random subset.")
    ] = None,
    labels: LabelNames = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help="NAME[,NAME…] of lm-evaluation-harness, for language models."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", min=1, help="Tokens between windows over long documents. Default: half a window."),
    ] = None,
    batch_size: BatchSize = 32,
    max_length: MaxLength = None,
    seed: Seed = 0,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a checkpoint on labelled data, a language model on texts, absolute and relative to its sources."""
    from plait import api

    named = None if data is None and tasks is not None else named_or_alone(data, "--data")
    entry = None if named is None else spec(named, text_column, text_pair_column, label_column)
    found = api.evaluate(
        model, entry, sources=sources, examples=examples, batch_size=batch_size, max_length=max_length, seed=seed,
        revision=revision, trust_remote_code=trust_remote_code, labels=label_names(labels),
        resamples=resamples, predictions=predictions, tasks=tasks, stride=stride,
        out_of_scope=None if out_of_scope is None else spec(out_of_scope, text_column, text_pair_column, None),
    )  # fmt: skip
    show_scores(found, json=json, per_class=per_class)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="Folder, file of statistics, or Hub id.")],
    revision: Revision = None,
    trust_remote_code: Trust = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Describe what lies at a path: a checkpoint, a result, statistics or posteriors."""
    from plait import api

    found = api.inspect(path, revision=revision, trust_remote_code=trust_remote_code)
    if json:
        render.as_json(found)
    else:
        render.facts(found)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Clear the cache.")] = False,
    limit: Annotated[
        str | None, typer.Option("--limit", help="SIZE to trim it to, such as 2GB; the longest unused go first.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show, trim or clear the cache of statistics."""
    from plait.statistics.cache_space import describe, trim

    removed = trim(0 if clear else limit or 0) if clear or limit is not None else None
    found = describe(removed)
    if json:
        render.as_json(found)
    else:
        render.facts(found)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method. Default: all.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List all methods and when to use them, or explain one with its options."""
    from plait import api

    found = api.methods(name)
    if json:
        render.as_json(found)
    elif name is None:
        rows = [
            {"method": n + (" *" if m["default"] else ""), "when to use it": m["when"] or m["summary"],
             "needs": ", ".join(m["needs"]) or "–", "options": ", ".join(m["options"]) or "–"}
            for n, m in found.items()
        ]  # fmt: skip
        render.table(rows)
        render.line("* default; `plait methods NAME` explains a method and its options")
    else:
        for key, about in found.items():
            explain(key, about)


def explain(name: str, method: dict[str, Any]) -> None:
    """Prints one method whole: its equation, when to use it, what it needs, its options."""
    render.line(f"{name}\n\n{method['documentation']}\n")
    shown = {"when to use it": method["when"], "default": method["default"], "needs": method["needs"]}
    render.facts({**shown, "paper": method["paper"], "laws": method["laws"]})
    if method["options"]:
        rows = [
            {"option": option, "type": about["type"], "default": str(about["default"]).replace("None", "–"),
             "limits": about["limits"] or "–", "meaning": about["meaning"]}
            for option, about in method["options"].items()
        ]  # fmt: skip
        render.table(rows)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors: every key, every method with its options."""
    from plait import api

    render.as_json(api.schema())
