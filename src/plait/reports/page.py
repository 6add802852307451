"""One self-contained page beside a result: no network, no scripts; apart because every room above writes it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.errors import OutputError, printable
from plait.reports.blocks import Chart, Listing, Page, Prose, Table
from plait.reports.comparison import checked
from plait.reports.drawing import inline, save, svg

if TYPE_CHECKING:
    from jinja2 import Environment

logger = logging.getLogger("plait")
PAGE, FIGURES = "index.html", "figures"
LARGEST = 3_000_000
"""Bytes of a page; charts beyond it are named with the file that has them."""


def write_page(folder: str | Path, comparison: Mapping[str, Any]) -> Path:
    """Returns the page of a comparison, written into its folder with its figures and its model card.

    Args:
        folder: the comparison's folder; `index.html`, `figures/*.svg`, `figures/*.png` and `README.md` are replaced.
        comparison: what `comparison.json` holds.

    Raises:
        SourceError: content that no comparison has, or of a newer schema.
        OutputError: the folder cannot be written.
    """
    from plait.reports.comparison_card import comparison_card
    from plait.reports.comparison_page import comparison_page

    found = checked(comparison)
    page = comparison_page(found)
    written = write(Path(folder), page)
    card = comparison_card(found, page, Path(folder).resolve().name)
    _write(Path(folder) / "README.md", card)
    return written


def write(folder: Path, page: Page) -> Path:
    """Returns the file of a page, written with its charts as files.

    Raises:
        OutputError: the folder cannot be written.
    """
    drawn: dict[str, tuple[str, str]] = {}
    budget = LARGEST * 2 // 3
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        for chart in page.charts:
            document = svg(chart.figure)
            save(chart.figure, document, folder / FIGURES / chart.name)
            both = (
                inline(document, chart.name),
                inline(svg(chart.wide), f"{chart.name}-wide") if chart.wide else "",
            )
            size = sum(len(text.encode()) for text in both)
            drawn[chart.name] = both if size <= budget else ("", "")
            budget -= size if size <= budget else 0
    except OSError as problem:
        raise OutputError(f"cannot write figures to {folder / FIGURES}: {problem.strerror}") from problem
    _write(folder / PAGE, render(page, drawn))
    return folder / PAGE


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as problem:
        raise OutputError(f"cannot write {file}: {problem.strerror}") from problem


START, END = "<!-- figures -->", "<!-- end of figures -->"


def add_figures(card: Path, page: Page) -> None:
    """Puts the charts of a page into a model card, in place of those of before; nothing where there is no card.

    Raises:
        OutputError: the card cannot be written.
    """
    from plait.reports.cards import as_markdown

    if not card.is_file() or not page.charts:
        return
    before, _, rest = card.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    pictures = "\n\n".join(
        f"![{as_markdown(chart.title)}]({FIGURES}/{chart.name}.png)" for chart in page.charts
    )
    _write(card, f"{before.rstrip()}\n\n{START}\n## Figures\n\n{pictures}\n{END}\n{after.lstrip()}")


def render(page: Page, drawn: Mapping[str, tuple[str, str]]) -> str:
    """Returns a page as HTML.

    Args:
        page: what it has.
        drawn: SVG by chart, narrow and wide; empty for one that stays a file.
    """
    told = {"page": page, "drawn": drawn, "kind": kind_of_block, "figures": FIGURES}
    return templates().get_template("page.html.j2").render(told)


@functools.cache
def templates() -> Environment:
    """Returns the templates; all that is put into them is escaped, and spelled out where a terminal would obey it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    def spelled(value: Any) -> Any:
        escaped = not isinstance(value, str) or hasattr(value, "__html__")
        return value if escaped else printable(value)

    return Environment(
        loader=PackageLoader("plait.reports", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=spelled,
    )  # fmt: skip


KINDS = {Table: "table", Chart: "chart", Listing: "listing", Prose: "prose"}


def kind_of_block(block: object) -> str:
    """Returns which macro of the template shows a block."""
    return KINDS[type(block)]
