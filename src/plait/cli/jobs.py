"""Commands that make results: merge, run, check, estimate, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli import render
from plait.cli.app import app
from plait.cli.fields import with_fields
from plait.cli.options import (
    METHOD,
    SOURCES,
    AdapterBases,
    BatchSize,
    DryRun,
    Json,
    LabelColumn,
    LayerWeights,
    MaxLength,
    Names,
    Output,
    Overwrite,
    PairColumn,
    Quiet,
    Resume,
    Revision,
    Revisions,
    Seed,
    TextColumn,
    Trust,
    named_sources,
    pairs,
    parse_yaml,
    revised,
    spec,
    told_of,
)
from plait.cli.show import show_merged, show_plan, show_result
from plait.errors import OutputError, RecipeError, did_you_mean


@app.command()
@with_fields("MergeRecipe", "MethodSpec", without=("sources", "output", "evaluate", "validation", "labels"))
def merge(
    *,
    sources: Annotated[
        list[str], typer.Argument(help="[NAME=]CHECKPOINT: a folder or a Hub id.", rich_help_panel=SOURCES)
    ],
    data: Names = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weight", help="NAME=λ: weight of a source. Default: 1.", rich_help_panel=SOURCES),
    ] = None,
    layer_weights: LayerWeights = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            help="given, sampled or exact: whose labels statistics are of. NAME=LABEL,LABEL: what the labels of a "
            "source's head are called, in its order.",
            rich_help_panel=SOURCES,
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task", help="NAME[,NAME…]=TASK: sources that share one task and head.", rich_help_panel=SOURCES
        ),
    ] = None,
    statistics: Annotated[
        list[str] | None,
        typer.Option("--statistics", help="NAME=FILE from `plait estimate`.", rich_help_panel=SOURCES),
    ] = None,
    evaluate: Annotated[
        list[str] | None,
        typer.Option("--evaluate", help="TASK=FILE to score the result on.", rich_help_panel=SOURCES),
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option("--validation", help="TASK=FILE to search on, with labels.", rich_help_panel=SOURCES),
    ] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    revision: Revisions = None,
    adapter_bases: AdapterBases = None,
    fields: dict[str, Any],
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="OPTION=VALUE of the method; see `plait methods NAME`.", rich_help_panel=METHOD),
    ] = None,
    output: Output,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge fine-tuned checkpoints into one encoder with a head per task."""
    from plait import api
    from plait.merging.plan import check_output
    from plait.recipe import MergeRecipe
    from plait.recipe.arguments import merge_recipe

    columns = (text_column, text_pair_column, label_column)
    settings = {name: value for name, value in fields.items() if name in MergeRecipe.model_fields}
    chosen = {name: value for name, value in fields.items() if name not in settings}
    if (whose := whose_labels(labels)) is not None:
        chosen["labels"] = whose
    given = revised(named_sources(sources, "sources"), revision)
    given = told_of(given, "--adapter-base", "base", adapter_bases)
    given = told_of(given, "--layer-weight", "layer_weights", layer_weights)
    recipe, _ = merge_recipe(
        with_labels(given, [told for told in labels or () if "=" in told]), out=output,
        data=spec(pairs(data, "--data"), *columns),
        statistics=pairs(statistics, "--statistics"), weights=pairs(weights, "--weight", float),
        tasks=pairs(tasks, "--task"), evaluate=spec(pairs(evaluate, "--evaluate"), *columns),
        validation=spec(pairs(validation, "--validation"), *columns),
        options={**chosen, **pairs(options, "--set", parse_yaml)}, **{"base": None, "method": None, **settings},
    )  # fmt: skip
    if dry_run:
        check_output(recipe, overwrite=overwrite)
        show_plan(api.check(recipe), json=json)
        return
    show_merged(api.run(recipe, overwrite=overwrite, resume=resume), json=json)


def whose_labels(values: list[str] | None) -> str | None:
    """Returns whose labels statistics are of, as opposed to names of labels.

    Raises:
        RecipeError: two answers.
    """
    every = [value for value in values or () if "=" not in value]
    if len(every) > 1:
        raise RecipeError(f"--labels: {' and '.join(every)} are given; expected one of given, sampled, exact")
    return every[0] if every else None


def with_labels(sources: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    """Returns sources with the names of their labels.

    Raises:
        RecipeError: names for a source that is not there.
    """
    named = pairs(labels, "--labels")
    if unknown := [name for name in named if name not in sources]:
        raise RecipeError(f"--labels for unknown source {unknown[0]!r}{did_you_mean(unknown[0], sources)}")
    return {
        name: {**(model if isinstance(model, dict) else {"model": model}), "labels": named[name]}
        if name in named
        else model
        for name, model in sources.items()
    }


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML, of Plait or of mergekit.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write, instead of the recipe's.")
    ] = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe."""
    from plait import api

    if dry_run:
        show_plan(api.check(recipe, overwrite=overwrite, output=output), json=json)
        return
    show_result(api.run(recipe, overwrite=overwrite, resume=resume, output=output), json=json)


@app.command()
def convert(
    recipe: Annotated[Path, typer.Argument(help="A recipe of mergekit, in YAML.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write. Default: the terminal.")] = None,
    into: Annotated[Path | None, typer.Option("--into", help="Folder that the recipe is to write.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Translate a recipe of mergekit into one of Plait; what no method here does is named."""
    from plait import api
    from plait.recipe import to_yaml

    text = to_yaml(api.convert(recipe, output=into))
    if output is None:
        render.line(text.rstrip())
        return
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists (use --overwrite, or another output)")
    output.write_text(text, encoding="utf-8")
    render.line(str(output))


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a recipe: names, sources, shapes, tokenizers, labels; says what it would do."""
    from plait import api

    show_plan(api.check(recipe), json=json)


@app.command()
def estimate(
    model: Annotated[str, typer.Argument(help="A checkpoint: a folder or a Hub id.")],
    data: Annotated[str, typer.Option("--data", help="FILE with texts and labels.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .safetensors file to write.")],
    importance: Annotated[
        str, typer.Option("--importance", help="Statistic to estimate; see `plait methods`.")
    ] = "mask_nodes",
    labels: Annotated[str, typer.Option("--labels", help="given, sampled or exact.")] = "given",
    examples: Annotated[int, typer.Option("--examples", min=1, help="Size of a random subset.")] = 256,
    per: Annotated[
        str, typer.Option("--per", help="example; batch to reproduce published numbers.")
    ] = "example",
    passes: Annotated[
        int,
        typer.Option(
            "--passes", min=1, help="Backward passes per text at most with --labels exact; beyond, one at random."
        ),
    ] = 16,
    batch_size: BatchSize = 16,
    max_length: MaxLength = None,
    seed: Seed = 0,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Estimate a checkpoint's statistics, to share instead of the data."""
    from plait import api
    from plait.statistics.cache import estimate_plan

    given = spec(data, text_column, text_pair_column, label_column)
    asked: dict[str, Any] = {
        "importance": importance, "labels": labels, "examples": examples, "per": per, "passes": passes,
        "batch_size": batch_size, "max_length": max_length, "seed": seed, "out": output, "overwrite": overwrite,
        "revision": revision, "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    if dry_run:
        show_plan(estimate_plan(model, given, **asked), json=json)
        return
    found = api.estimate(model, given, **asked)
    show_plan({"output": str(output), "estimator": found.estimator, **found.facts}, json=json)


@app.command()
def export(
    merged: Annotated[str, typer.Argument(help="A merged checkpoint, or an ensemble.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    task: Annotated[
        str | None, typer.Option("--task", help="Task of a merged checkpoint. Default: the only one.")
    ] = None,
    member: Annotated[
        int | None, typer.Option("--member", help="Member of an ensemble. Default: all, folded into one model.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write one task of a merged checkpoint, or an ensemble, as an ordinary transformers checkpoint."""
    from plait import api

    render.line(str(api.export(merged, output, task=task, member=member, overwrite=overwrite)))
