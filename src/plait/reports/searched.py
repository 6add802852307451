"""What a card says of a search; apart from the cards, which are long enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Table = Callable[[tuple[str, ...], Sequence[tuple[str, ...]]], str]


def searched(found: Mapping[str, Any], table: Table) -> str:
    """Returns what a search found, and the rows that it was judged by; `table` makes Markdown of titles and lines."""
    best, defaults = found["best"], found["defaults"]
    beside = "" if defaults is None else f"; the method's defaults keep {100 * defaults:.1f} %"
    said = (
        f"The best of {found['trials']} trials ({found['pruned']} given up early, {found['failed']} failed) keeps "
        f"{100 * best['score']:.1f} % of the sources' scores on validation rows{beside}. As the greatest of many it is "
        "higher than what other rows will show."
    )
    options = table(("option", "found"), [(name, f"{value:g}") for name, value in best["values"].items()])
    about = [(name, str(told["rows"]), told["from"]) for name, told in found["validation"].items()]
    return "\n\n".join([said, options, table(("task", "validation rows", "from"), about)])
