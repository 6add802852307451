"""Command of the ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from plait.cli import render
from plait.cli.app import app
from plait.cli.arguments import (
    DryRun,
    Epochs,
    Json,
    LabelColumn,
    LearningRate,
    Overwrite,
    PairColumn,
    Precision,
    ProblemType,
    Quiet,
    ReportTo,
    Resume,
    Revision,
    Seed,
    StepSize,
    TextColumn,
    Trust,
    Warmup,
    pairs,
    spec,
)
from plait.cli.making import parse_yaml, show_plan
from plait.errors import RecipeError


class Starting(TyperCommand):
    """Tells a base, which stands before `--from`, from the models after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Returns what the parser leaves over.

        Raises:
            RecipeError: a base and models that exist.
        """
        at = next((i for i, word in enumerate(args) if word.partition("=")[0] == "--from"), 0)
        before = self.make_parser(ctx).parse_args(args=args[:at])[0].get("models")
        if before:
            raise RecipeError(
                f"both a base ({', '.join(before)}) and --from are given; expected one of them, models that exist "
                "after --from"
            )
        return super().parse_args(ctx, args)


@app.command(cls=Starting)
def ensemble(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    models: Annotated[
        list[str] | None, typer.Argument(help="BASE, an encoder; or after --from all models but the first.")
    ] = None,
    sources: Annotated[
        list[str] | None, typer.Option("--from", help="A B C: fine-tuned models that become the members.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="FILE with texts and labels.")] = None,
    validation: Annotated[
        str | None, typer.Option("--validation", help="FILE with labels that chooses the epoch.")
    ] = None,
    members: Annotated[int | None, typer.Option("--members", help="M, default 4.")] = None,
    shared_layers: Annotated[
        str, typer.Option("--shared-layers", help="all, or how many from the bottom.")
    ] = "all",
    head: Annotated[str, typer.Option("--head", help="linear or tanh.")] = "linear",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="camero, shared, single, separate, one, codistillation, batchensemble, mc-dropout.",
        ),
    ] = "camero",
    perturbation: Annotated[
        str | None,
        typer.Option("--perturbation", help="dropout (default), gaussian, adversarial, word-dropout, none."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option("--strength", help="Of the perturbation; default its own.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="OPTION=VALUE of the perturbation; method.OPTION=VALUE, consistency.OPTION=VALUE of those.",
        ),
    ] = None,
    replicate_at: Annotated[
        int | None, typer.Option("--replicate-at", help="The first layer that members see differently.")
    ] = None,
    consistency: Annotated[
        str | None, typer.Option("--consistency", help="ensemble (default), pairwise or none.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="Weight of the regulariser, default 1.")
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="One member's activations in memory; a third more time.")
    ] = False,
    accumulate: Annotated[int, typer.Option("--accumulate", min=1, help="Parts that a step is cut in.")] = 1,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="A random subset of the data.")] = None,
    held_back: Annotated[
        float,
        typer.Option(
            "--held-back", min=0.0, max=0.9, help="Share that chooses the epoch without validation."
        ),
    ] = 0.1,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", help="Score that chooses the epoch, such as matthews or nll; default the task's."
        ),
    ] = None,
    epochs: Epochs = 3.0,
    learning_rate: LearningRate = 5e-5,
    batch_size: StepSize = 16,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=4, help="Tokens a text is cut at, default 128.")
    ] = None,
    warmup: Warmup = 0.1,
    weight_decay: Annotated[float, typer.Option("--weight-decay", min=0.0)] = 0.01,
    precision: Precision = "float32",
    problem_type: ProblemType = None,
    seed: Seed = 0,
    report_to: ReportTo = "none",
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train M models for the price of one: shared layers, perturbed members, one file."""
    from plait import api
    from plait.api.ensembling import ensemble_recipe, run_ensemble
    from plait.training.processes import first

    base, given = starts(models, sources)
    columns = (text_column, text_pair_column, label_column)
    fields: dict[str, Any] = {
        "members": members, "shared_layers": shared_layers, "head": head, "replay": replay,
        **chosen(options, method=method, perturbation=perturbation, consistency=consistency),
        "strength": strength, "replicate_at": replicate_at, "alpha": alpha, "accumulate": accumulate, "limit": limit,
        "held_back": held_back, "metric": metric, "epochs": epochs, "learning_rate": learning_rate,
        "batch_size": batch_size, "max_length": max_length, "warmup": warmup, "weight_decay": weight_decay,
        "precision": precision, "problem_type": problem_type, "seed": seed, "report_to": report_to,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    recipe = ensemble_recipe(
        base, sources=given, out=output, options=fields,
        data=None if data is None else spec(data, *columns),
        validation=None if validation is None else spec(validation, *columns),
    )  # fmt: skip
    if dry_run:
        show_plan(api.check(recipe, overwrite=overwrite), json=json)
        return
    saved = run_ensemble(recipe, overwrite=overwrite, resume=resume)
    if first():
        show_ensemble(saved, json=json)


def starts(models: list[str] | None, first: list[str] | None) -> tuple[str | None, list[str] | None]:
    """Returns the base, or the models after every `--from`.

    Raises:
        RecipeError: no base, or several.
    """
    given = list(models or ())
    if first:
        return None, [*first, *given]
    if len(given) != 1:
        found = ", ".join(given) or "none"
        raise RecipeError(f"base: expected one model, found {found}; members that exist come after --from")
    return given[0], None


def chosen(options: list[str] | None, **names: str | None) -> dict[str, Any]:
    """Returns method, perturbation and consistency with the options that are theirs; those nobody names stay out."""
    own: dict[str, dict[str, Any]] = {field: {} for field in names}
    for name, value in pairs(options, "--set", parse_yaml).items():
        field, dot, option = name.partition(".")
        owner, key = (field, option) if dot and field in own else ("perturbation", name)
        own[owner][key] = value
    return {
        field: {"name": name or UNNAMED[field], **own[field]}
        for field, name in names.items()
        if name is not None or own[field]
    }


def show_ensemble(saved: Any, *, json: bool) -> None:
    """Prints where an ensemble lies, what it is worth, weighs and costs."""
    report = saved.report
    if json:
        render.as_json({"output": str(saved.folder), **report})
        return
    sizes, costs = report["parameters"], report["forward_equivalents"]
    several = f"{report['members']} member{'s' if report['members'] > 1 else ''}"
    render.line(
        f"{saved.folder}: {several} by {report['recipe']['method']['name']}, {sizes['saved']:,} parameters "
        f"({report['megabytes']:g} MB); as separate models {sizes['separate']:,}"
    )
    columns = dict.fromkeys((*SHOWN, report["recipe"].get("metric")))
    for epoch in report["epochs"]:
        shown = {name: epoch[name] for name in columns if name in epoch}
        kept = " (kept)" if epoch.get("kept") else ""
        render.line("  " + ", ".join(f"{name} {value:g}" for name, value in shown.items()) + kept)
    if found := report.get("validation"):
        primary, metrics = found["primary"], found["metrics"]
        alone = [scores[primary] for scores in found["sources"].values()]
        render.line(
            f"  together: {primary} {metrics[primary]:.3f}; members alone {min(alone):.3f} to {max(alone):.3f}"
        )
    render.line(
        f"  forward passes per example: {costs['training_step']:g} an epoch (a backward pass counts as two), "
        f"{costs['prediction']:g} a prediction"
    )


def show_members(scores: Any) -> None:
    """Prints the scores of all members together and of each alone, and how they differ."""
    together, names = scores.metrics, [scores.primary, *ALONE]
    columns = [name for name in dict.fromkeys(names) if name in together]
    rows = [
        {"": who, **{name: f"{found[name]:.3f}" for name in columns}}
        for who, found in {"together": together, **scores.sources}.items()
    ]
    render.table(rows, title=f"{scores.examples} examples", right=columns)
    others = {name: value for name, value in together.items() if name not in columns}
    render.line(", ".join(f"{name} {value:.4g}" for name, value in others.items()))


UNNAMED = {"perturbation": "dropout", "consistency": "ensemble"}
"""What options are for where no name is given."""
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
