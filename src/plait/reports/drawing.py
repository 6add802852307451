"""The look of charts: matplotlib figures as SVG that follows the page's colours, and as files for other places."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NARROW, WIDE = 4.0, 7.6
"""Inches: on a phone of 390 pixels a narrow figure is as wide as the screen, its letters as large as the text's."""
INK, SOFT, RULE, PAPER = "#1d1b22", "#5d5867", "#d9d5de", "#fffffe"
VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--rule)", PAPER: "var(--card)"}
"""The colours of paper, and what stands for them in a page, which may be dark."""
WAYS = {"separate": "#747d88", "merge": "#3374d6", "amalgamate": "#d1741a", "ensemble": "#8058c8"}
"""Mid-tones that read on white and on black; those of the drawing of the three strands."""
SHAPES = {"separate": "s", "merge": "o", "amalgamate": "^", "ensemble": "D"}
OTHER, SHAPE = "#2b9460", "P"
LINES = ("#3374d6", "#d1741a", "#8058c8", "#2b9460", "#747d88", "#b8405e")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKS = ("o", "^", "D", "s", "v", "P")
MAP = "cividis"
"""Its lightness grows evenly: it reads in grey, and by those who see red and green alike."""
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 9.5, "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5, "legend.fontsize": 9.5, "text.parse_math": False, "svg.fonttype": "none",
    "svg.hashsalt": "plait", "text.color": INK, "axes.labelcolor": SOFT, "axes.edgecolor": RULE, "xtick.color": SOFT,
    "ytick.color": SOFT, "xtick.labelcolor": SOFT, "ytick.labelcolor": INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": False, "grid.color": RULE, "grid.linewidth": 0.7,
    "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False,
    "xtick.major.size": 0, "ytick.major.size": 0, "axes.linewidth": 0.8, "lines.linewidth": 1.7, "hatch.linewidth": 0.6,
    "axes.formatter.useoffset": False, "axes.unicode_minus": False,
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """Draws inside with the look of the page; scripts without a letter's shape are the browser's to draw."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def canvas(height: float, width: float = NARROW) -> tuple[Figure, Axes]:
    """Returns a figure of inches and its only axes, without the machinery of windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def short(text: str, limit: int = 24) -> str:
    """Returns a name from a file on one line as long as a chart has room for."""
    plain = printable(" ".join(str(text).split()))
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def svg(figure: Figure) -> str:
    """Returns a figure as an SVG document in the colours of paper; where everything stands is then settled."""
    found = io.StringIO()
    with styled():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is what takes longest, and savefig would ask for it twice
        figure.savefig(
            found, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = printable(found.getvalue())
    return text[text.index("<svg") :]


FONT = re.compile(r"font: ([\w. ]*?)([\d.]+px) [^;\"]*")
NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
IDS = re.compile(r'(\bid="|href="#|url\(#)')


def inline(document: str, name: str) -> str:
    """Returns an SVG to stand in a page: in its colours and letters, as wide as there is room, its ids its own."""
    text = document
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    text = FONT.sub(r"font: \1\2 var(--sans)", text)
    text = IDS.sub(lambda found: f"{found[1]}{name}-", text)
    view = re.search(r'viewBox="[^"]*"', text)
    head = f"<svg {NAMESPACES} {view[0] if view else ''}"
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index(">") + 1 :], flags=re.DOTALL)
    return f'{head} aria-hidden="true" focusable="false">{body}'


def save(figure: Figure, document: str, place: Path) -> None:
    """Writes a figure beside the page, as SVG and PNG in the colours of paper."""
    head, _, body = FONT.sub(r"font: \1\2 system-ui, sans-serif", document).partition(">")
    paper = '<rect width="100%" height="100%" fill="#ffffff"/>'
    text = f'<?xml version="1.0" encoding="utf-8"?>\n{head}>{paper}{body}'
    place.with_suffix(".svg").write_text(text, encoding="utf-8")
    with styled():
        figure.savefig(place.with_suffix(".png"), dpi=160, facecolor="#ffffff", metadata={"Software": None})
