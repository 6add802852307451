"""Texts of an amalgamation: unlabelled ones to train on, labelled ones to score."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from plait.amalgamation.label_space import LabelSpace
from plait.data import Examples, align_labels, open_texts
from plait.data.reading import read
from plait.data.texts import Texts, keep_texts
from plait.errors import DataError
from plait.recipe import AmalgamateRecipe, DataSpec
from plait.recipe.arguments import is_file
from plait.teachers.record import FILE, Record, read_record

logger = logging.getLogger("plait")


def store_record(recipe: AmalgamateRecipe) -> Record | None:
    """Returns the record of the recipe's store, None where there is none yet."""
    folder = recipe.store_folder()
    return read_record(folder) if (folder / FILE).is_file() else None


def open_corpus(recipe: AmalgamateRecipe, texts: Any, known: Record | None) -> tuple[Texts, int]:
    """Returns the texts, or a random subset of them, and how many rows had no text; they are read once and kept.

    A store that exists decides which subset: its texts serve students of other seeds.

    Args:
        recipe: what to do.
        texts: in memory, instead of the recipe's file.
        known: the record of the store.

    Raises:
        DataError: none are given, or there is none among them.
    """
    given = recipe.text if texts is None else texts
    if given is None:
        raise DataError("no texts given: an amalgamation needs --text FILE, unlabelled texts to teach on")
    told = {"path": given.path, **given.columns()} if isinstance(given, DataSpec) else given
    whole = keep_texts(told) if isinstance(told, Texts) else open_texts(told, once=True)
    if recipe.limit is None or recipe.limit >= whole.count():
        return whole, whole.skipped
    seed = recipe.seed if known is None else known.settings.seed
    chosen = subset(whole, recipe.limit, seed)
    return open_texts(chosen, label="label" if labels(whole) else None, once=True), whole.skipped


def labels(texts: Texts) -> bool:
    """Says whether texts bring labels along that were asked for."""
    return next(texts.chunks()).labels is not None


def subset(texts: Texts, limit: int, seed: int) -> Examples:
    """Returns a random subset in the order of the data, never holding more than that and one chunk."""
    chosen = np.sort(np.random.default_rng(seed).permutation(texts.count())[:limit])
    parts, start = [], 0
    for chunk in texts.chunks():
        inside = chosen[(chosen >= start) & (chosen < start + len(chunk))] - start
        parts.append(chunk.select(inside.tolist()))
        start += len(chunk)
    first = parts[0]

    def joined(name: str) -> tuple[Any, ...] | None:
        return (
            None if getattr(first, name) is None else tuple(v for part in parts for v in getattr(part, name))
        )

    return replace(first, texts=joined("texts") or (), pairs=joined("pairs"), labels=joined("labels"))


def labelled(data: Any, space: LabelSpace) -> Examples:
    """Returns validation data whose labels the student will have."""
    found = read(data)
    if found.labels is None:
        raise DataError(found.lacks_labels("expected a label column to validate on"))
    warn_of_places(found.source, found, space.names)
    align_labels(
        found, space.names, kind="sequence_classification", problem_type="single_label_classification"
    )
    return found


def warn_of_places(source: str, data: Examples, names: Sequence[str]) -> None:
    """Says so where labels are numbers without names: what they stand for depends on the order of the teachers."""
    if data.label_names is None and any(isinstance(label, int) for label in data.labels or ()):
        places = ", ".join(f"{at} = {name}" for at, name in enumerate(names))
        logger.warning("%s: labels are numbers, read as places in the union: %s", source, places)


def with_columns(texts: Any, **columns: str | None) -> Any:
    """Returns texts that know their columns: a file with what is named, or those in memory, opened."""
    named: dict[str, Any] = {name: column for name, column in columns.items() if column is not None}
    if not named:
        return texts
    if is_file(texts):
        return {**(texts if isinstance(texts, Mapping) else {"path": str(texts)}), **named}
    return open_texts(texts, **named)
