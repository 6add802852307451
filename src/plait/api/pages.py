"""Pages of what lies on disk, apart from the jobs: a comparison again from its JSON, any result from its record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plait.errors import PlaitError, SourceError
from plait.reports.comparison import FILE, read_comparison
from plait.reports.page import add_figures, write, write_page
from plait.reports.record import ARTICLES, BASE, Manifest, kind_of, models_from, read_record

logger = logging.getLogger("plait")
PAGED = ("merged", "student", "ensemble", "one_model", "members", "finetuned")


def report(folder: str | Path, *, out: str | Path | None = None) -> Path:
    """Returns the page written of a comparison, a merged checkpoint, a student, an ensemble or a fine-tuned model.

    One HTML file without scripts that needs no network, its charts as SVG and PNG under `figures/`, and the charts in
    the model card of the folder. A comparison's page is made again from its JSON. Of a merge whose sources are still
    where they were, it shows where they conflict.

    Args:
        folder: where the result lies.
        out: another folder for the page and its figures; default beside the result.

    Raises:
        SourceError: nothing there that has a page, or a damaged record.
        OutputError: the folder cannot be written.
    """
    place = Path(folder).expanduser()
    target = place if out is None else Path(out).expanduser()
    if (place / FILE).is_file():
        return write_page(target, read_comparison(place))
    kind = kind_of(place)
    if kind not in PAGED:
        what = f"is {ARTICLES[kind]}" if kind is not None else "holds nothing that Plait made"
        raise SourceError(f"{folder} {what}; pages are made of comparisons, {', '.join(PAGED)}")
    page = of_result(place, str(kind))
    written = write(target, page)
    add_figures(target / "README.md", page)
    return written


def of_result(folder: Path, kind: str) -> Any:
    """Returns the page of a result in a folder."""
    from plait.reports.result_page import result_page

    record = read_record(folder)
    if record is None:
        raise SourceError(f"{folder} has lost its plait.json: there is nothing to tell of it")
    told = asdict(record) if isinstance(record, Manifest) else record.report()
    notes: list[str] = []
    conflicts = conflicts_of(folder, record, notes) if isinstance(record, Manifest) else None
    importance = importance_of(folder, record) if isinstance(record, Manifest) else None
    return result_page(
        told, kind, folder.resolve().name, conflicts=conflicts, importance=importance, notes=notes
    )


def conflicts_of(folder: Path, record: Manifest, notes: list[str]) -> Mapping[str, Any] | None:
    """Returns where the sources of a merge conflict, None where that can no longer be known; a note says why."""
    from plait.checkpoints.checkpoint import open_checkpoint
    from plait.merging.conflicts import conflict_map

    told = models_from(folder, record.sources)
    if len([name for name in told if name != BASE]) < 2:
        return None
    try:
        opened = {
            name: open_checkpoint(about["origin"], name=name, revision=about.get("revision"), ask_hub=False)
            for name, about in told.items()
        }
        changed = [n for n, one in opened.items() if told[n].get("digest") not in (None, one.digest)]
        if changed:
            raise SourceError(f"{', '.join(changed)}: no longer what was merged")
        base = opened.pop(BASE, None)
        return conflict_map(list(opened.values()), base)
    except PlaitError as problem:
        notes.append(f"Where the sources conflict is not shown: {problem}")
        return None


def importance_of(folder: Path, record: Manifest) -> dict[str, Any] | None:
    """Returns heads and neurons of the sources whose statistics are still where the recipe named them."""
    from plait.statistics.importance import load_statistics

    found = {}
    for name, source in (record.recipe.get("sources") or {}).items():
        named = source.get("statistics") if isinstance(source, Mapping) else None
        places = [] if not isinstance(named, str) else [Path(named), folder / named]
        file = next((place for place in places if place.is_file()), None)
        try:
            statistics = None if file is None else load_statistics(file)
        except PlaitError as problem:
            logger.warning("importance of %s is not shown: %s", name, problem)
            continue
        if statistics is not None and statistics.estimator == "mask_nodes":
            found[name] = {"heads": statistics.heads.tolist(), "neurons": statistics.neurons.mean(1).tolist()}
    return found or None
