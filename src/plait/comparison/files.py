"""The folder of a comparison: whether it may be written, its record, and the files of its answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from plait.checkpoints.output import write_whole
from plait.checkpoints.places import check_apart
from plait.checkpoints.writer import check_target
from plait.comparison.plan import ComparisonPlan
from plait.errors import OutputError, PlaitError
from plait.recipe import CompareRecipe
from plait.reports.page import write_page
from plait.reports.record import ARTICLES, kind_of, read_record, versions, write_record

ANSWER = "comparison.json"


def check_folder(recipe: CompareRecipe, *, overwrite: bool, job: ComparisonPlan | None = None) -> None:
    """Raises `OutputError` where a comparison may not be written: something else lies there, or one of other sources.

    Args:
        recipe: of the comparison.
        overwrite: whether one of other sources is replaced.
        job: its plan, as soon as there is one.
    """
    folder = Path(recipe.output)
    told = [*recipe.sources.values()]
    read = [*(s.model for s in told), *(s.data for s in told), *recipe.test.values(), recipe.text, recipe.base]
    check_apart(folder, *read)
    if not folder.is_dir() or not any(folder.iterdir()):
        check_target(folder)
        return
    if (kind := kind_of(folder)) != "comparison":
        what = "holds no comparison" if kind is None else f"holds {ARTICLES[kind]}"
        raise OutputError(f"{folder} {what}, it will not be overwritten: choose another output")
    check_target(folder, overwrite=True)
    if job is None or overwrite:
        return
    before, now = recorded(folder).get("sources", {}), sources_of(job)
    if changed := [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]:
        raise OutputError(
            f"{folder} holds a comparison of other sources ({', '.join(changed)} differ): choose another output, or "
            "pass --overwrite to forget it"
        )


def recorded(folder: Path) -> dict[str, Any]:
    """Returns the record of a comparison; nothing where it is damaged, as its cells speak for themselves."""
    try:
        found = read_record(folder)
    except PlaitError:
        return {}
    return {} if found is None or not hasattr(found, "report") else found.report()


def sources_of(job: ComparisonPlan) -> dict[str, str]:
    """Returns the sources' digests by name."""
    return {source.name: source.digest for source in job.situation.material.sources}


def note_begun(job: ComparisonPlan) -> None:
    """Writes the record of a comparison that is not finished."""
    job.situation.folder.mkdir(parents=True, exist_ok=True)
    write_record(job.situation.folder, "comparison", {**facts(job), "finished": False})


def facts(job: ComparisonPlan) -> dict[str, Any]:
    """Returns what the record says."""
    return {
        "sources": sources_of(job),
        "recipe": job.recipe.model_dump(mode="json", exclude_none=True),
        "versions": versions(),
    }


def is_whole(folder: Path, key: str) -> bool:
    """Says whether the answer to just this comparison lies in a folder; not where candidates had failed."""
    found = recorded(folder)
    return bool(
        found.get("finished") and found.get("job") == key and not found.get("failed") and (folder / ANSWER).is_file()
    )


def write_answer(job: ComparisonPlan, found: Mapping[str, Any], key: str) -> None:
    """Writes the answer, a recipe for each candidate, a card, and last the record that says it is finished."""
    folder = job.situation.folder
    for row in found["candidates"]:
        if row["recipe"] is not None:
            text = yaml.safe_dump(row["recipe"], sort_keys=False, allow_unicode=True)
            place = folder / "recipes" / f"{row['id']}.yaml"
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, text.encode())
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / ANSWER, (text + "\n").encode())
    write_page(folder, found)
    failed = [row["id"] for row in found["candidates"] if row["status"] == "failed"]
    write_record(folder, "comparison", {**facts(job), "finished": True, "job": key, "failed": failed})
