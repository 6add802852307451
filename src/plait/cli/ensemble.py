"""Command of the ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from plait.cli.app import app
from plait.cli.fields import Grouped, with_fields
from plait.cli.options import (
    METHOD,
    SOURCES,
    DryRun,
    Json,
    LabelColumn,
    Output,
    Overwrite,
    PairColumn,
    Quiet,
    Resume,
    TextColumn,
    pairs,
    parse_yaml,
    spec,
)
from plait.cli.show import show_ensemble, show_plan
from plait.errors import RecipeError
from plait.registry import canonical

BEFORE = "plait.before"
"""Where a context keeps the words before `--from`."""


class Starting(Grouped):
    """Tells a base, which stands before `--from`, from the models after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Returns what the parser leaves over; notes what stands before `--from`."""
        at = next((i for i, word in enumerate(args) if word.partition("=")[0] == "--from"), 0)
        ctx.meta[BEFORE] = self.make_parser(ctx).parse_args(args=args[:at])[0].get("models")
        return super().parse_args(ctx, args)


@app.command()
@with_fields(
    "EnsembleRecipe", without=("base", "sources", "data", "validation", "text", "output"), cls=Starting
)
def ensemble(
    *,
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="BASE, an encoder; or after --from all models but the first.", rich_help_panel=SOURCES
        ),
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help="A B C: fine-tuned models that become the members, or that teach BASE.",
            rich_help_panel=SOURCES,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="FILE with texts and labels.", rich_help_panel=SOURCES)
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option("--validation", help="Labelled FILE to choose the epoch by.", rich_help_panel=SOURCES),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="FILE of texts without labels, for methods whose members teach a model; repeatable.",
            rich_help_panel=SOURCES,
        ),
    ] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    fields: dict[str, Any],
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="OPTION=VALUE of perturbation or method; method.OPTION=VALUE, consistency.OPTION=VALUE of those.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    output: Output,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train M models for the price of one: shared layers, perturbed members, one file; or M that become one."""
    from plait import api
    from plait.ensembles.run import run_ensemble
    from plait.recipe.arguments import ensemble_recipe
    from plait.recipe.ensemble import CAMERO, TEACHING
    from plait.training.state import first

    method = fields.get("method") or (TEACHING if text else CAMERO.name)
    base, given = starts(models, sources, context.meta.get(BEFORE), method)
    columns = (text_column, text_pair_column, label_column)
    names = {"method": method, **{name: fields.get(name) for name in ("perturbation", "consistency")}}
    chosen = {**fields, **named(options, **names)}
    if text:
        chosen["text"] = [spec(file, text_column, text_pair_column, None) for file in text]
    recipe = ensemble_recipe(
        base, sources=given, out=output, options=chosen,
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
        if base and (len(base) > 1 or canonical(method) not in teaching()):
            raise RecipeError(
                f"both a base ({', '.join(base)}) and --from are given; expected one of them, models that exist "
                f"after --from (methods {' and '.join(teaching())} take one base before it, which learns)"
            )
        return (base[0] if base else None), [*first, *given[len(base) :]]
    if len(given) != 1:
        found = ", ".join(given) or "none"
        raise RecipeError(f"base: expected one model, found {found}; members that exist come after --from")
    return given[0], None


def teaching() -> list[str]:
    """Returns the methods whose members teach a model that starts from a base."""
    from plait.ensembles.method import Build, built_as

    return built_as(Build.TAUGHT)


def unnamed() -> dict[str, str]:
    """Returns the perturbation and the regulariser whose options are given where no name is."""
    from plait.ensembles.method import Choice
    from plait.ensembles.objective import PerturbationChoice

    return {"perturbation": PerturbationChoice().name, "consistency": Choice().consistency}


def named(options: list[str] | None, **names: str | None) -> dict[str, Any]:
    """Returns method, perturbation and consistency with the options that are theirs; those nobody names stay out."""
    own: dict[str, dict[str, Any]] = {field: {} for field in names}
    for name, value in pairs(options, "--set", parse_yaml).items():
        field, dot, option = name.partition(".")
        owner, key = (field, option) if dot and field in own else (owner_of(name, names), name)
        own[owner][key] = value
    return {
        field: {"name": name or unnamed()[field], **own[field]}
        for field, name in names.items()
        if name is not None or own[field]
    }


def owner_of(option: str, names: Mapping[str, str | None]) -> str:
    """Returns whose an option without a prefix is: the method's where it has one and no perturbation is named."""
    from plait.ensembles.method import METHODS

    method = names.get("method")
    known = method in METHODS and names.get("perturbation") is None
    return "method" if known and option in METHODS[str(method)].options else "perturbation"
