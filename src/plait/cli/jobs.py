"""Commands that make results: merge, run, check, estimate, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli import render
from plait.cli.app import app
from plait.cli.options import (
    BatchSize,
    DryRun,
    Json,
    LabelColumn,
    MaxLength,
    Names,
    Overwrite,
    PairColumn,
    Quiet,
    Resume,
    Revision,
    Revisions,
    Seed,
    TextColumn,
    Trust,
    pairs,
    parse_yaml,
    revised,
    spec,
)
from plait.cli.show import show_merged, show_plan, show_result
from plait.errors import RecipeError, did_you_mean


@app.command()
def merge(
    sources: Annotated[list[str], typer.Argument(help="NAME=CHECKPOINT: a folder or a Hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    data: Names = None,
    method: Annotated[
        str | None, typer.Option("--method", help="Default: chosen by what is given (docs/merging.md).")
    ] = None,
    importance: Annotated[
        str | None, typer.Option("--importance", help="mask-nodes, diagonal or block-traces.")
    ] = None,
    mapping: Annotated[str | None, typer.Option("--mapping", help="paper or structural.")] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            help="given, sampled or exact: whose labels statistics are of. NAME=LABEL,LABEL: what the labels of a "
            "source's head are called, in its order.",
        ),
    ] = None,
    normalize: Annotated[str | None, typer.Option("--normalize", help="none, mean, l2 or tensor.")] = None,
    examples: Annotated[
        int | None, typer.Option("--examples", min=1, help="Examples per source for statistics.")
    ] = None,
    per: Annotated[
        str | None, typer.Option("--per", help="example; batch to reproduce published numbers.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Texts at a time.")] = None,
    max_length: MaxLength = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of every random choice.")] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="OPTION=VALUE of the method.")] = None,
    weights: Annotated[list[str] | None, typer.Option("--weight", help="NAME=λ, 1 where not given.")] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="NAME=TASK: sources that share one task and head.")
    ] = None,
    statistics: Annotated[
        list[str] | None, typer.Option("--statistics", help="NAME=FILE from `plait estimate`.")
    ] = None,
    evaluate: Annotated[
        list[str] | None, typer.Option("--evaluate", help="TASK=FILE to score the result on.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="The model the sources were fine-tuned from.")
    ] = None,
    forward: Annotated[
        bool | None,
        typer.Option("--forward", help="RegMean: statistics from the layers merged so far, in forward order."),
    ] = None,
    merge_pooler: Annotated[
        bool, typer.Option("--merge-pooler", help="Merge poolers too; default: each stays with its head.")
    ] = False,
    align_heads: Annotated[
        str | None,
        typer.Option(
            "--align-heads",
            help="Fit heads to the merged encoder on texts: none, shift or ridge. Default: ridge without --method and "
            "with --data of every source, else none.",
        ),
    ] = None,
    align_ridge: Annotated[
        float, typer.Option("--align-ridge", help="Of ridge: how strongly heads stay as they are.")
    ] = 1.0,
    refine: Annotated[
        int | None,
        typer.Option(
            "--refine",
            min=0,
            help="Passes in which the result learns the sources' answers. Default: 3 without --method and with "
            "--data of every source, else 0.",
        ),
    ] = None,
    refine_texts: Annotated[
        int, typer.Option("--refine-texts", min=2, help="Texts of each source for refinement and heads.")
    ] = 256,
    refine_on: Annotated[
        str, typer.Option("--refine-on", help="logits, or hidden: the states that heads read.")
    ] = "logits",
    refine_heads: Annotated[bool, typer.Option("--refine-heads", help="Train heads too.")] = False,
    refine_dropout: Annotated[bool, typer.Option("--refine-dropout", help="With the encoder's dropout.")] = False,
    refine_rate: Annotated[float, typer.Option("--refine-rate", help="Highest learning rate.")] = 1e-4,
    refine_batch_size: Annotated[int, typer.Option("--refine-batch-size", min=1, help="Texts a step.")] = 16,
    refine_precision: Annotated[
        str, typer.Option("--refine-precision", help="float32 or bfloat16.")
    ] = "float32",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, float16 or bfloat16; default the sources'.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option("--max-shard-size", help="Such as 5GB.")] = "5GB",
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    revision: Revisions = None,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge fine-tuned checkpoints into one encoder with a head per task."""
    from plait import api
    from plait.merging.plan import check_output
    from plait.recipe.arguments import merge_recipe

    chosen = {
        "importance": importance, "mapping": mapping, "labels": whose_labels(labels), "normalize": normalize,
        "examples": examples, "per": per, "batch_size": batch_size, "max_length": max_length, "seed": seed,
        "forward": forward,
    }  # fmt: skip
    recipe, _ = merge_recipe(
        named_sources(
            revised(pairs(sources, "sources"), revision), [told for told in labels or () if "=" in told]
        ),
        out=output,
        method=method,
        data=spec(pairs(data, "--data"), text_column, text_pair_column, label_column),
        statistics=pairs(statistics, "--statistics"),
        base=base,
        weights=pairs(weights, "--weight", float),
        tasks=pairs(tasks, "--task"),
        evaluate=spec(pairs(evaluate, "--evaluate"), text_column, text_pair_column, label_column),
        merge_pooler=merge_pooler,
        align_heads=align_heads,
        align_ridge=align_ridge,
        refine=refine,
        refine_texts=refine_texts,
        refine_on=refine_on,
        refine_heads=refine_heads,
        refine_dropout=refine_dropout,
        refine_rate=refine_rate,
        refine_batch_size=refine_batch_size,
        refine_precision=refine_precision,
        dtype=dtype,
        max_shard_size=max_shard_size,
        trust_remote_code=trust_remote_code,
        options={**{k: v for k, v in chosen.items() if v is not None}, **pairs(options, "--set", parse_yaml)},
    )
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


def named_sources(sources: dict[str, Any], labels: list[str]) -> dict[str, Any]:
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
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe."""
    from plait import api

    if dry_run:
        show_plan(api.check(recipe, overwrite=overwrite), json=json)
        return
    show_result(api.run(recipe, overwrite=overwrite, resume=resume), json=json)


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
        str, typer.Option("--importance", help="mask-nodes, diagonal, block-traces, or gram.")
    ] = "mask_nodes",
    labels: Annotated[str, typer.Option("--labels", help="given, sampled or exact.")] = "given",
    examples: Annotated[int, typer.Option("--examples", min=1, help="A random subset of this size.")] = 256,
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
    """Estimate a checkpoint's statistics: share them instead of the data."""
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
    task: Annotated[str | None, typer.Option("--task", help="Which task of a merged checkpoint.")] = None,
    member: Annotated[
        int | None, typer.Option("--member", help="Which member of an ensemble; default all, folded.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write one task of a merged checkpoint, or an ensemble, as an ordinary transformers checkpoint."""
    from plait import api

    render.line(str(api.export(merged, output, task=task, member=member, overwrite=overwrite)))
