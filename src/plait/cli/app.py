"""The application: its commands live in `making` (results), `looking` (answers) and `training` (sources)."""

from __future__ import annotations

from typing import Annotated

import typer

from plait.cli import render
from plait.cli.fields import Completing

app = typer.Typer(
    name="plait",
    cls=Completing,
    help="Weave several fine-tuned language models into one.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def version(value: bool) -> None:
    """Prints the version and stops."""
    if value:
        import plait

        render.line(f"plait {plait.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Weave several fine-tuned language models into one."""
    if context.invoked_subcommand is None:
        render.line(context.get_help())
