"""Commands of the amalgamation: amalgamate, posteriors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli.app import app
from plait.cli.fields import with_fields
from plait.cli.options import (
    SOURCES,
    DryRun,
    Json,
    LabelNames,
    Output,
    Overwrite,
    PairColumn,
    Quiet,
    Resume,
    Revisions,
    Seed,
    TextColumn,
    Trust,
    named_sources,
    pairs,
    parse_yaml,
    revised,
    spec,
)
from plait.cli.show import show_plan, show_student
from plait.errors import RecipeError

GATE = "Gate and targets"
Teachers = Annotated[
    list[str],
    typer.Argument(help="[NAME=]CHECKPOINT: a classifier, a folder or a Hub id.", rich_help_panel=SOURCES),
]
TextFile = Annotated[
    str, typer.Option("--text", help="FILE of texts; labels are not used.", rich_help_panel=SOURCES)
]
LabelOfTexts = Annotated[
    str | None,
    typer.Option(
        "--label-column", help="Column of the texts' labels, to measure routing accuracy.", rich_help_panel=SOURCES
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=2, help="Size of a random subset of the texts.")]
LastLayers = Annotated[
    int | None,
    typer.Option("--last-layers", min=1, help="Dropout in this many last layers only, which is much cheaper."),
]
Stop = Annotated[
    str | None,
    typer.Option(
        "--stop", help="never (default), certain or likely: leave out passes that cannot change the choice."
    ),
]
Dropout = Annotated[
    float | None, typer.Option("--dropout", help="Dropout rate for teachers that have no dropout.")
]
Length = Annotated[
    int | None, typer.Option("--max-length", min=4, help="Tokens a text is cut at; default 128.")
]


@app.command()
@with_fields("AmalgamateRecipe", without=("sources", "text", "rename", "validation", "output"))
def amalgamate(
    *,
    teachers: Teachers,
    text: TextFile,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelOfTexts = None,
    labels: LabelNames = None,
    revision: Revisions = None,
    validation: Annotated[
        str | None,
        typer.Option(
            "--validation",
            help="Labelled FILE to choose the epoch by, instead of held-back texts.",
            rich_help_panel=SOURCES,
        ),
    ] = None,
    validation_text_column: Annotated[
        str | None,
        typer.Option("--validation-text-column", help="Column of the texts in --validation.", rich_help_panel=SOURCES),
    ] = None,
    validation_label_column: Annotated[
        str | None,
        typer.Option(
            "--validation-label-column", help="Column of the labels in --validation.", rich_help_panel=SOURCES
        ),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option("--rename", help="TEACHER.LABEL=NAME; equal names are one label.", rich_help_panel=SOURCES),
    ] = None,
    fields: dict[str, Any],
    gate_options: Annotated[
        list[str] | None,
        typer.Option("--set-gate", help="OPTION=VALUE of the gate; needs --gate.", rich_help_panel=GATE),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="OPTION=VALUE of the objective; see `plait methods NAME`.", rich_help_panel=GATE),
    ] = None,
    output: Output,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Teach one student all that several classifiers know, from texts without labels."""
    from plait import api
    from plait.amalgamation.run import run_amalgamation
    from plait.recipe.amalgamate import MUKA
    from plait.recipe.arguments import amalgamation_recipe

    if gate_options and "gate" not in fields:
        raise RecipeError("--set-gate: name the gate whose option this is with --gate")
    chosen: dict[str, Any] = {**fields, "rename": pairs(rename, "--rename")}
    if labels:
        chosen["labels"] = pairs(labels, "--labels")
    chosen["objective"] = named(fields.get("objective", MUKA.name), options, "--set")
    if "gate" in fields:
        chosen["gate"] = named(fields["gate"], gate_options, "--set-gate")
    held = spec(validation, validation_text_column, text_pair_column, validation_label_column)
    recipe = amalgamation_recipe(
        revised(named_sources(teachers, "teachers"), revision), out=output,
        texts=spec(text, text_column, text_pair_column, label_column),
        student=chosen.pop("student", None), validation=None if validation is None else held, options=chosen,
    )  # fmt: skip
    if dry_run:
        show_plan(api.check(recipe, overwrite=overwrite), json=json)
        return
    show_student(run_amalgamation(recipe, overwrite=overwrite, resume=resume), json=json)


def named(name: str, options: list[str] | None, what: str) -> dict[str, Any]:
    """Returns a gate or objective with its options."""
    found = pairs(options, what, parse_yaml)
    if "name" in found:
        raise RecipeError(f"{what}: 'name' is no option")
    return {"name": name, **found}


@app.command()
def posteriors(
    teachers: Teachers,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the store.")],
    text: TextFile,
    passes: Annotated[int, typer.Option("--passes", min=0, help="Monte Carlo passes.")] = 16,
    keep: Annotated[
        str,
        typer.Option("--keep", help="Outputs kept beside logits: none, features or layers; see `plait methods`."),
    ] = "features",
    last_layers: LastLayers = None,
    stop: Stop = None,
    dropout: Dropout = None,
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts per batch.")] = 64,
    max_length: Length = None,
    seed: Seed = 0,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    revision: Revisions = None,
    trust_remote_code: Trust = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew where there is a store.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score texts with the teachers: the expensive stage of amalgamate alone. A stopped run goes on where it was."""
    from plait import api
    from plait.amalgamation.run import posteriors_plan
    from plait.api.artifacts import describe_store

    given = revised(named_sources(teachers, "teachers"), revision)
    asked: dict[str, Any] = {
        "texts": spec(text, text_column, text_pair_column, None), "out": output, "passes": passes, "keep": keep,
        "last_layers": last_layers, "stop": stop or "never", "dropout": dropout, "limit": limit,
        "batch_size": batch_size, "max_length": max_length or 128, "seed": seed,
        "trust_remote_code": trust_remote_code, "overwrite": overwrite,
    }  # fmt: skip
    if dry_run:
        show_plan(posteriors_plan(given, **asked), json=json)
        return
    show_plan(describe_store(api.posteriors(given, **asked)), json=json)
