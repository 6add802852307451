"""The model card of a comparison's folder; apart because its figures are those of the page."""

from __future__ import annotations

from plait.reports.blocks import Page
from plait.reports.cards import as_markdown, table
from plait.reports.comparison import Comparison
from plait.reports.comparison_page import as_yaml, licences
from plait.reports.front import Front, portable
from plait.reports.words import between, megabytes, millions, share


def comparison_card(found: Comparison, page: Page, name: str) -> str:
    """Returns the card as Markdown with the front matter that model hubs read.

    Args:
        found: the comparison.
        page: its page, whose figures lie beside the card.
        name: of the folder.
    """
    origins = {source.name: {"license": source.license} for source in found.sources}
    rows = [
        (one.name, share(one.mean_relative), between(*one.interval, shares=True) if one.interval else "",
         megabytes(one.bytes), millions(one.parameters))
        for one in found.done
    ]  # fmt: skip
    shown = [chart for chart in page.charts if chart.name.startswith(("ranking", "front", "conflict"))]
    choice = found.choice
    said = [] if choice is None or found.recommended is None else [
        "## Recommended", f"**{as_markdown(choice.name)}**: {as_markdown(found.recommended.reason)}",
        *([f"It lies in `{as_markdown(choice.folder)}`."] if choice.folder else []),
        *(["```yaml\n" + as_yaml(portable(choice.recipe)) + "```"] if choice.recipe else []),
    ]  # fmt: skip
    parts = [
        Front(name, "plait", ["comparison"], "merge", origins).text(),
        f"# {as_markdown(name)}",
        f"Ways of combining {', '.join(as_markdown(s.name) for s in found.sources)}, measured side by side by Plait. "
        "The whole page is `index.html`.",
        *said,
        "## Candidates",
        table(("candidate", "mean relative score", "95 % interval", "on disk", "parameters"), rows),
        *(f"![{as_markdown(chart.title)}](figures/{chart.name}.png)" for chart in shown),
        "## Licence",
        as_markdown(licences({source.name: source.license for source in found.sources})),
    ]
    return "\n\n".join(parts) + "\n"
