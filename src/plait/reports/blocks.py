"""What a page is made of: sections of tables, charts with a table behind them, and text to copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first cell names its row.

    `words` has the columns after the first that hold words rather than numbers; `marked` the rows that stand out;
    `stack` says that on a phone each row is a list of its own.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()
    marked: tuple[int, ...] = ()
    stack: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure, the file name of its copies, what it shows in a sentence, and its numbers."""

    name: str
    title: str
    says: str
    figure: Figure
    table: Table
    wide: Figure | None = None


@dataclass(frozen=True)
class Listing:
    """Text to copy."""

    caption: str
    text: str
    opened: bool = False


@dataclass(frozen=True)
class Prose:
    """Paragraphs."""

    lines: tuple[str, ...]
    tone: str = ""


Block = Table | Chart | Listing | Prose


@dataclass(frozen=True)
class Section:
    """Blocks under a heading; `key` is the anchor."""

    key: str
    title: str
    lead: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Verdict:
    """The answer: what to take, why, its figures, and how to get it."""

    label: str
    title: str
    reason: str
    facts: tuple[tuple[str, str, str], ...] = ()
    ways: tuple[tuple[str, str], ...] = ()
    means: str = ""


@dataclass(frozen=True)
class Page:
    """One page."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    verdict: Verdict | None = None
    notes: tuple[str, ...] = ()
    foot: str = ""

    @property
    def charts(self) -> tuple[Chart, ...]:
        """Returns all charts in order."""
        return tuple(
            block for section in self.sections for block in section.blocks if isinstance(block, Chart)
        )
