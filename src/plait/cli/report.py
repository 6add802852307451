"""The command `report`; apart because it prints where a page lies and nothing else."""

from __future__ import annotations

from typing import Annotated

import typer

from plait.cli import render
from plait.cli.app import app
from plait.cli.options import Json, Quiet


@app.command()
def report(
    folder: Annotated[
        str, typer.Argument(help="A comparison, or any merged, student, ensemble or fine-tuned folder.")
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="FOLDER for the page. Default: beside the result.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the page of a result: one HTML file, its charts as files."""
    from plait import api

    page = api.report(folder, out=output)
    figures = sorted(str(file) for file in (page.parent / "figures").glob("*.svg"))
    if json:
        render.as_json({"page": str(page), "bytes": page.stat().st_size, "figures": figures})
    else:
        render.line(
            f"{page} ({page.stat().st_size / 1e6:.1f} MB), {len(figures)} charts in {page.parent / 'figures'}"
        )
