"""The command that compares: what checkpoints can become, measured on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli.app import app
from plait.cli.fields import with_fields
from plait.cli.jobs import with_labels
from plait.cli.options import (
    OUTPUT,
    SOURCES,
    DryRun,
    Json,
    LabelColumn,
    LabelNames,
    Names,
    Overwrite,
    PairColumn,
    Quiet,
    Revisions,
    TextColumn,
    named_or_alone,
    named_sources,
    pairs,
    revised,
    spec,
)
from plait.cli.show import show_comparison, show_plan
from plait.errors import RecipeError, did_you_mean

FAILED = 3
"""The exit code where all is written and some candidates have failed."""


@app.command()
@with_fields("CompareRecipe", without=("sources", "test", "text", "output"))
def compare(
    *,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="[NAME=]CHECKPOINT: a folder or a Hub id; or one recipe in YAML.", rich_help_panel=SOURCES
        ),
    ],
    data: Names = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            "--test",
            help="NAME=FILE: labelled rows to score a source on; FILE alone is scored over all labels. "
            "Default: half of the data.",
            rich_help_panel=SOURCES,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text", help="FILE of texts without labels that students learn from.", rich_help_panel=SOURCES
        ),
    ] = None,
    labels: LabelNames = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task", help="NAME[,NAME…]=TASK: sources that share one task and head.", rich_help_panel=SOURCES
        ),
    ] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    revision: Revisions = None,
    fields: dict[str, Any],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write.", rich_help_panel=OUTPUT)
    ] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare all ways in which checkpoints can become one model; goes on with what lies in the output."""
    from plait import api

    columns = (text_column, text_pair_column, label_column)
    told: dict[str, Any] = {
        "data": spec(pairs(data, "--data"), *columns), "test": tests(test, columns),
        "texts": None if text is None else spec(text, text_column, text_pair_column, None), **fields,
    }  # fmt: skip
    if len(sources) == 1 and sources[0].endswith((".yaml", ".yml")):
        recipe = changed(Path(sources[0]), {**told, "output": output})
    else:
        given = revised(named_sources(sources, "sources"), revision)
        recipe = spelled(with_labels(given, labels or []), pairs(tasks, "--task"), told, output)
    if dry_run:
        show_plan(api.check(recipe, overwrite=overwrite), json=json)
        return
    found = api.run(recipe, overwrite=overwrite)
    show_comparison(found, json=json)
    if found.failed:
        raise typer.Exit(FAILED)


def tests(values: list[str] | None, columns: tuple[str | None, ...]) -> dict[str, Any]:
    """Returns rows to test on by name; a file alone is scored over all labels."""
    from plait.recipe.arguments import ALL

    given = named_or_alone(values, "--test") if values else {}
    named: dict[str, Any] = spec(given if isinstance(given, dict) else {ALL: given}, *columns)
    return named


def spelled(sources: dict[str, Any], tasks: dict[str, Any], told: dict[str, Any], output: Path | None) -> Any:
    """Returns the recipe that a command line spells.

    Raises:
        RecipeError: no output.
    """
    from plait.recipe.arguments import comparison_recipe

    if output is None:
        raise RecipeError("no output given: name the folder to write with -o FOLDER")
    given = {name: told[name] for name in ("data", "test", "texts")}
    options = {name: value for name, value in told.items() if name not in (*given, "base")}
    recipe, _, _ = comparison_recipe(
        sources, out=output, **given, base=told.get("base"), tasks=tasks, options=options
    )
    return recipe


def changed(file: Path, told: dict[str, Any]) -> Any:
    """Returns the comparison in a recipe, with what a command line says instead.

    Raises:
        RecipeError: a recipe of something else, or data of a source that it does not have.
    """
    from plait.recipe import CompareRecipe, parse_as, read_recipe

    recipe = read_recipe(file)
    if not isinstance(recipe, CompareRecipe):
        raise RecipeError(f"{file} is to {recipe.combine}, expected combine: compare (plait run takes any recipe)")
    content = recipe.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    for name, entry in told.pop("data").items():
        if name not in content["sources"]:
            raise RecipeError(f"data for unknown source {name!r}{did_you_mean(name, content['sources'])}")
        content["sources"][name] |= {"data": entry}
    texts, tested = told.pop("texts"), told.pop("test")
    content |= {} if texts is None else {"text": texts}
    content |= {"test": {**content.get("test", {}), **tested}} if tested else {}
    return parse_as(CompareRecipe, {**content, **{k: v for k, v in told.items() if v is not None}}, str(file))
