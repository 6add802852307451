"""Command of the ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from plait.cli.app import app
from plait.cli.options import (
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
    WeightDecay,
    pairs,
    parse_yaml,
    spec,
)
from plait.cli.show import TAUGHT, UNNAMED, show_ensemble, show_plan
from plait.errors import RecipeError
from plait.registry import canonical

BEFORE = "plait.before"
"""Where a context keeps the words before `--from`."""


class Starting(TyperCommand):
    """Tells a base, which stands before `--from`, from the models after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Returns what the parser leaves over; notes what stands before `--from`."""
        at = next((i for i, word in enumerate(args) if word.partition("=")[0] == "--from"), 0)
        ctx.meta[BEFORE] = self.make_parser(ctx).parse_args(args=args[:at])[0].get("models")
        return super().parse_args(ctx, args)


@app.command(cls=Starting)
def ensemble(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    models: Annotated[
        list[str] | None, typer.Argument(help="BASE, an encoder; or after --from all models but the first.")
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option("--from", help="A B C: fine-tuned models that become the members, or that teach BASE."),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="FILE with texts and labels.")] = None,
    validation: Annotated[
        str | None, typer.Option("--validation", help="FILE with labels that chooses the epoch.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="FILE of texts without labels to teach on (distilled, hydra); repeatable."),
    ] = None,
    members: Annotated[int | None, typer.Option("--members", help="M, default 4.")] = None,
    shared_layers: Annotated[
        str, typer.Option("--shared-layers", help="all, or how many from the bottom.")
    ] = "all",
    head: Annotated[str, typer.Option("--head", help="linear or tanh.")] = "linear",
    classifier_dropout: Annotated[
        float | None, typer.Option("--classifier-dropout", help="Before the head; default that of the encoder.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="camero (default), distilled (default with --text), hydra, soup, greedy-soup, swa, deni, shared, "
            "single, separate, one, codistillation, batchensemble, lora, singular, mc-dropout.",
        ),
    ] = None,
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
            help="OPTION=VALUE of perturbation or method; method.OPTION=VALUE, consistency.OPTION=VALUE of those.",
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
    weight_decay: WeightDecay = 0.01,
    precision: Precision = "float32",
    problem_type: ProblemType = None,
    seed: Seed = 0,
    report_to: ReportTo = "none",
    student_epochs: Annotated[
        float | None, typer.Option("--student-epochs", help="Epochs of what members teach; default as theirs.")
    ] = None,
    keep_members: Annotated[
        bool, typer.Option("--keep-members", help="Keep members that taught, in OUTPUT.members.")
    ] = False,
    store: Annotated[
        str | None, typer.Option("--store", help="The members' answers, used or made; default OUTPUT.posteriors.")
    ] = None,
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
    """Train M models for the price of one: shared layers, perturbed members, one file; or M that become one."""
    from plait import api
    from plait.ensembles.run import run_ensemble
    from plait.recipe.arguments import ensemble_recipe
    from plait.training.state import first

    named = method or ("distilled" if text else "camero")
    base, given = starts(models, sources, context.meta.get(BEFORE), named)
    columns = (text_column, text_pair_column, label_column)
    fields: dict[str, Any] = {
        "members": members, "shared_layers": shared_layers, "head": head, "replay": replay,
        "classifier_dropout": classifier_dropout,
        **chosen(options, method=named, perturbation=perturbation, consistency=consistency),
        "strength": strength, "replicate_at": replicate_at, "alpha": alpha, "accumulate": accumulate, "limit": limit,
        "held_back": held_back, "metric": metric, "epochs": epochs, "learning_rate": learning_rate,
        "batch_size": batch_size, "max_length": max_length, "warmup": warmup, "weight_decay": weight_decay,
        "precision": precision, "problem_type": problem_type, "seed": seed, "report_to": report_to,
        "revision": revision, "trust_remote_code": trust_remote_code, "student_epochs": student_epochs,
        "keep_members": keep_members, "store": store,
        "text": [spec(file, text_column, text_pair_column, None) for file in text] if text else None,
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


def starts(
    models: list[str] | None, first: list[str] | None, before: list[str] | None, method: str
) -> tuple[str | None, list[str] | None]:
    """Returns the base, and the models after every `--from`.

    Raises:
        RecipeError: no base, several, or one beside models that exist where no student starts from it.
    """
    given, base = list(models or ()), list(before or ())
    if first:
        if base and (len(base) > 1 or canonical(method) not in TAUGHT):
            raise RecipeError(
                f"both a base ({', '.join(base)}) and --from are given; expected one of them, models that exist "
                f"after --from (methods {' and '.join(TAUGHT)} take one base before it, which learns)"
            )
        return (base[0] if base else None), [*first, *given[len(base) :]]
    if len(given) != 1:
        found = ", ".join(given) or "none"
        raise RecipeError(f"base: expected one model, found {found}; members that exist come after --from")
    return given[0], None


def chosen(options: list[str] | None, **names: str | None) -> dict[str, Any]:
    """Returns method, perturbation and consistency with the options that are theirs; those nobody names stay out."""
    own: dict[str, dict[str, Any]] = {field: {} for field in names}
    for name, value in pairs(options, "--set", parse_yaml).items():
        field, dot, option = name.partition(".")
        owner, key = (field, option) if dot and field in own else (owner_of(name, names), name)
        own[owner][key] = value
    return {
        field: {"name": name or UNNAMED[field], **own[field]}
        for field, name in names.items()
        if name is not None or own[field]
    }


def owner_of(option: str, names: Mapping[str, str | None]) -> str:
    """Returns whose an option without a prefix is: the method's where it has one and no perturbation is named."""
    from plait.ensembles.method import METHODS

    method = names.get("method")
    known = method in METHODS and names.get("perturbation") is None
    return "method" if known and option in METHODS[str(method)].options else "perturbation"
