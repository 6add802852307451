"""Makes candidates: each is an ordinary result of its strand, at its place in the comparison's folder."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from plait.amalgamation.run import run_amalgamation
from plait.comparison.candidates import Candidate
from plait.comparison.plan import ComparisonPlan
from plait.comparison.situation import Situation, quiet
from plait.data import Examples, align_labels
from plait.data.writing import write_table
from plait.ensembles.run import run_ensemble
from plait.merging.plan import plan as plan_merge
from plait.merging.run import write_merge
from plait.recipe import AmalgamateRecipe, EnsembleRecipe, MergeRecipe
from plait.training.state import finished_job

logger = logging.getLogger("plait")


def make(job: ComparisonPlan, candidate: Candidate) -> float:
    """Returns the seconds that making a candidate takes, or took where it lies there already."""
    folder, key = job.situation.folder / candidate.folder, job.keys.made(candidate)
    noted = job.cells.note(key)
    if noted is not None and holds(job, candidate):
        return float(noted["seconds"])
    start = time.monotonic()
    # What lies there may be of other data or settings, which have the same place: only its own work goes on.
    going_on = (job.cells.note(place_of(candidate)) or {}).get("begun") == key
    if not going_on:
        shutil.rmtree(folder, ignore_errors=True)
        job.cells.write_note(place_of(candidate), {"begun": key})
    with quiet():
        folder.parent.mkdir(parents=True, exist_ok=True)
        written(candidate.recipe, job.situation, resume=going_on)
    seconds = time.monotonic() - start
    job.cells.write_note(key, {"folder": candidate.folder, "seconds": round(seconds, 2)})
    job.cells.write_note(place_of(candidate), {"begun": key, "made": key, "job": finished_job(folder)})
    return seconds


def place_of(candidate: Candidate) -> str:
    """Returns the note that says whose model lies in a candidate's folder."""
    return f"place-{candidate.id.replace('/', '-')}"


def holds(job: ComparisonPlan, candidate: Candidate) -> bool:
    """Says whether a candidate's folder holds the model of these sources, data and settings, and not of others."""
    noted = job.cells.note(place_of(candidate)) or {}
    made = finished_job(job.situation.folder / candidate.folder)
    return made is not None and (noted.get("made"), noted.get("job")) == (job.keys.made(candidate), made)


def written(
    recipe: MergeRecipe | EnsembleRecipe | AmalgamateRecipe | None, situation: Situation, *, resume: bool = False
) -> None:
    """Writes what a recipe makes, from sources that are open and rows that have been read."""
    if isinstance(recipe, MergeRecipe):
        material = situation.material
        rows: Mapping[str, Examples] = {n: material.data[n] for n, s in recipe.sources.items() if s.data is not None}
        job = plan_merge(recipe, rows, opened=material.sources)
        write_merge(job, recipe.output, overwrite=True, resume=resume)
    elif isinstance(recipe, EnsembleRecipe):
        run_ensemble(recipe, overwrite=True, resume=resume)
    elif isinstance(recipe, AmalgamateRecipe):
        run_amalgamation(recipe, overwrite=True, resume=resume)


def write_data(situation: Situation) -> None:
    """Writes the rows that recipes name and no file holds: what was cut, and what was in memory."""
    material = situation.material
    for name, spec in situation.files.items():
        if name not in material.whole:
            write_rows(material.data[name], Path(spec.path))
    if material.texts is not None and situation.texts == situation.written("texts"):
        write_rows(material.texts, Path(situation.texts.path))
    if material.alike and (rows := pooled(situation)) is not None:
        write_rows(rows, Path(situation.written("validation").path))


def pooled(situation: Situation) -> Examples | None:
    """Returns all labelled data of sources with the same labels together, by the names of their labels."""
    found = [named(rows, situation) for rows in situation.material.data.values() if rows.labels is not None]
    if not found:
        return None
    pairs = None if found[0].pairs is None else tuple(p for rows in found for p in rows.pairs or ())
    texts = tuple(text for rows in found for text in rows.texts)
    return Examples(texts, pairs, tuple(label for rows in found for label in rows.labels or ()), kind=found[0].kind)


def named(rows: Examples, situation: Situation) -> Examples:
    """Returns rows with the names of their labels in place of positions."""
    source = situation.material.sources[0]
    told: Any = {"kind": source.kind, "problem_type": source.problem_type}
    aligned = align_labels(rows, source.labels, **told)
    if source.kind != "sequence_classification" or source.problem_type != "single_label_classification":
        return aligned
    names = source.labels or ()
    return replace(aligned, labels=tuple(names[int(at)] for at in aligned.labels or ()), label_names=None)


def write_rows(rows: Examples, file: Path) -> None:
    """Writes rows as a file that is read as the same rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(file, columns_of(rows))


def columns_of(rows: Examples) -> dict[str, list[Any]]:
    """Returns rows in columns of the usual names."""
    if rows.kind == "token_classification":
        tags = {} if rows.labels is None else {"tags": [spoken(row, rows) for row in rows.labels]}
        return {"tokens": [list(words) for words in rows.texts], **tags}
    if rows.kind == "question_answering":
        answers = [
            {"text": [text for text, _ in options], "answer_start": [at for _, at in options]}
            for options in rows.labels or ()
        ]
        told = {"answers": answers} if rows.labels is not None else {}
        return {"question": list(rows.texts), "context": list(rows.pairs or ()), **told}
    found: dict[str, list[Any]] = {"text": list(rows.texts)}
    if rows.pairs is not None:
        found["text_pair"] = list(rows.pairs)
    if rows.labels is not None:
        found["label"] = [spoken(label, rows) for label in rows.labels]
    return found


def spoken(label: Any, rows: Examples) -> Any:
    """Returns a label by its name where the rows have names, as JSON can hold it."""
    if isinstance(label, tuple):
        return [spoken(one, rows) for one in label]
    names = rows.label_names
    return names[label] if names and isinstance(label, int) and 0 <= label < len(names) else label
