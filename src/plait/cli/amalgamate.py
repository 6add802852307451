"""Commands of the amalgamation: amalgamate, posteriors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli.app import app
from plait.cli.options import (
    DryRun,
    Epochs,
    Json,
    LabelNames,
    LearningRate,
    Overwrite,
    PairColumn,
    Precision,
    Quiet,
    ReportTo,
    Resume,
    Revisions,
    Seed,
    StepSize,
    TextColumn,
    Trust,
    Warmup,
    WeightDecay,
    pairs,
    parse_yaml,
    revised,
    spec,
)
from plait.cli.show import show_plan, show_student
from plait.errors import RecipeError

Teachers = Annotated[list[str], typer.Argument(help="NAME=CHECKPOINT: a classifier, a folder or a Hub id.")]
TextFile = Annotated[str, typer.Option("--text", help="FILE of texts; labels are not looked at.")]
LabelOfTexts = Annotated[
    str | None,
    typer.Option("--label-column", help="Labels of the texts, for study: gate oracle, routing accuracy."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=2, help="A random subset of this many texts.")]
LastLayers = Annotated[
    int | None, typer.Option("--last-layers", min=1, help="Dropout in the last m layers only: much cheaper.")
]
Stop = Annotated[
    str | None,
    typer.Option(
        "--stop", help="never (default), certain or likely: leave out passes that cannot change the choice."
    ),
]
Dropout = Annotated[
    float | None, typer.Option("--dropout", help="Rate to inject into teachers that have no dropout.")
]
Length = Annotated[
    int | None, typer.Option("--max-length", min=4, help="Tokens a text is cut at; default 128.")
]


@app.command()
def amalgamate(
    teachers: Teachers,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    text: TextFile,
    student: Annotated[
        str | None,
        typer.Option("--student", help="A model, a teacher's name, or merged; default the teachers' base."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The encoder before fine-tuning; default the recorded one, or the student."),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option("--gate", help="Who is competent: auto (default) and fitted weigh several; see plait methods."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=0, max=3, help="How often students correct the routing; one student each."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Of the soft gate; default the gate's own.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="hard (default), soft, or consensus (default where teachers share labels)."),
    ] = None,
    margin: Annotated[
        bool | None,
        typer.Option("--margin/--no-margin", help="Weigh texts by how clear the choice was; default yes."),
    ] = None,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Weigh texts by how many gates agree; gates auto and fitted.")
    ] = False,
    posterior: Annotated[
        str, typer.Option("--posterior", help="single (one pass) or mean (of the Monte Carlo passes).")
    ] = "single",
    calibrate: Annotated[
        str, typer.Option("--calibrate", help="none, temperature, standardize or auto; needs no labels.")
    ] = "none",
    objective: Annotated[str, typer.Option("--objective", help="muka, vkd, uhc, dfa or cfl.")] = "muka",
    options: Annotated[list[str] | None, typer.Option("--set", help="OPTION=VALUE of the objective.")] = None,
    gate_options: Annotated[
        list[str] | None, typer.Option("--set-gate", help="OPTION=VALUE of the gate; needs --gate.")
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option("--rename", help="TEACHER.LABEL=NAME; equal names are one label.")
    ] = None,
    labels: LabelNames = None,
    passes: Annotated[
        int | None, typer.Option("--passes", min=0, help="Monte Carlo passes; default 16 where needed.")
    ] = None,
    last_layers: LastLayers = None,
    stop: Stop = None,
    dropout: Dropout = None,
    store: Annotated[
        str | None, typer.Option("--store", help="Posteriors to use or make; default OUTPUT.posteriors.")
    ] = None,
    limit: Limit = None,
    held_back: Annotated[
        float, typer.Option("--held-back", min=0.0, max=0.9, help="Share of texts that choose the epoch.")
    ] = 0.05,
    validation: Annotated[
        str | None, typer.Option("--validation", help="FILE with labels that chooses the epoch instead.")
    ] = None,
    validation_text_column: Annotated[
        str | None, typer.Option("--validation-text-column", help="As --text-column, of --validation.")
    ] = None,
    validation_label_column: Annotated[
        str | None, typer.Option("--validation-label-column", help="Column with the label in --validation.")
    ] = None,
    epochs: Epochs = 3.0,
    learning_rate: LearningRate = 5e-5,
    batch_size: StepSize = 16,
    max_length: Length = None,
    warmup: Warmup = 0.1,
    weight_decay: WeightDecay = 0.01,
    precision: Precision = "float32",
    seed: Seed = 0,
    report_to: ReportTo = "none",
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelOfTexts = None,
    revision: Revisions = None,
    trust_remote_code: Trust = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Teach one student all that several classifiers know, from texts without labels."""
    from plait import api
    from plait.amalgamation.run import run_amalgamation
    from plait.recipe.arguments import amalgamation_recipe

    if gate_options and gate is None:
        raise RecipeError("--set-gate: name the gate whose option this is with --gate")
    fields: dict[str, Any] = {
        "gate": None if gate is None else named(gate, gate_options, "--set-gate"),
        "temperature": temperature, "target": target, "margin": margin, "posterior": posterior, "base": base,
        "rounds": rounds, "agreement": agreement,
        "calibrate": calibrate, "objective": named(objective, options, "--set"),
        "rename": pairs(rename, "--rename"), "labels": pairs(labels, "--labels") or None,
        "passes": passes, "last_layers": last_layers, "stop": stop,
        "dropout": dropout, "store": store, "limit": limit, "held_back": held_back, "epochs": epochs,
        "learning_rate": learning_rate, "batch_size": batch_size, "max_length": max_length, "warmup": warmup,
        "weight_decay": weight_decay, "precision": precision, "seed": seed, "report_to": report_to,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    held = spec(validation, validation_text_column, text_pair_column, validation_label_column)
    recipe = amalgamation_recipe(
        revised(pairs(teachers, "teachers"), revision), out=output,
        texts=spec(text, text_column, text_pair_column, label_column),
        student=student, validation=None if validation is None else held,
        # What is not said is left out: a store that exists then decides.
        options={name: value for name, value in fields.items() if value is not None},
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
        str, typer.Option("--keep", help="none, features (gate mahalanobis, cfl) or layers (dfa).")
    ] = "features",
    last_layers: LastLayers = None,
    stop: Stop = None,
    dropout: Dropout = None,
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts at a time.")] = 64,
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
    """Let teachers score texts: the expensive stage of amalgamate alone; a stopped run goes on where it was."""
    from plait import api
    from plait.amalgamation.run import posteriors_plan
    from plait.api.artifacts import describe_store

    given = revised(pairs(teachers, "teachers"), revision)
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
