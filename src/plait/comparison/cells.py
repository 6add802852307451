"""Finished work of a comparison on disk, by the content of all that decides it: never computed twice."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.checkpoints.output import write_whole
from plait.comparison.candidates import Candidate
from plait.comparison.situation import Situation
from plait.evaluation.outcome import RowSums
from plait.merging.rule import RULES
from plait.recipe import MergeRecipe
from plait.reports.record import versions

logger = logging.getLogger("plait")
PLACES = {"output", "store", "model", "data", "text", "validation", "report_to", "base", "student", "from"}
"""Keys of a recipe that name places: what lies there counts, by its digest."""


def hashed(content: Any) -> str:
    """Returns 32 hex digits of plain data."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, default=str).encode())


@dataclass(frozen=True)
class Cell:
    """What was measured of one candidate: its row in the answer, and what each test row adds to its scores."""

    row: Mapping[str, Any]
    sums: Mapping[str, RowSums] = field(default_factory=dict)


@dataclass(frozen=True)
class Keys:
    """Digests of what decides the candidates of a situation."""

    situation: Situation

    @cached_property
    def sources(self) -> dict[str, Any]:
        """Returns what the sources are: weights, configuration, tokenizer, names of labels, tasks."""
        material = self.situation.material
        found = {s.name: [s.digest, s.circumstances, s.labels, material.task_of(s.name)] for s in material.sources}
        base = self.situation.base
        return {**found, "(base)": None if base is None else base.digest}

    @cached_property
    def data(self) -> dict[str, str]:
        """Returns the fingerprints of the sources' data."""
        return {name: rows.fingerprint for name, rows in self.situation.material.data.items()}

    @cached_property
    def texts(self) -> str | None:
        """Returns the fingerprint of the texts that students learn from."""
        texts = self.situation.material.texts
        return None if texts is None else texts.fingerprint

    @cached_property
    def tests(self) -> list[Any]:
        """Returns what is scored, and how."""
        recipe, tests = self.situation.recipe, self.situation.material.tests
        rows = [[t.name, t.task, t.members, t.labels, t.rows.fingerprint] for t in tests]
        return [rows, recipe.max_length]

    def made(self, candidate: Candidate) -> str:
        """Returns the digest of all that decides a candidate's weights."""
        recipe = candidate.recipe
        content: dict[str, Any] = {"id": candidate.id, "sources": self.sources, "versions": versions()}
        content["order"] = list(self.situation.material.names)  # rules and starts of students may depend on it
        if recipe is not None:
            content["recipe"] = without_places(recipe.model_dump(mode="json", exclude_none=True))
        if isinstance(recipe, MergeRecipe) and recipe.method is not None and recipe.method.name in RULES:
            content["options"] = {o.name: o.default for o in RULES[recipe.method.name].options.values()}
        content |= {"data": self.data} if candidate.data else {}
        content |= {"texts": self.texts} if candidate.texts else {}
        return hashed(content)

    def scored(self, candidate: Candidate) -> str:
        """Returns the digest of all that decides a candidate's row."""
        return hashed([self.made(candidate), self.tests])

    def whole(self, candidates: list[Candidate]) -> str:
        """Returns the digest of all that decides the answer."""
        recipe = self.situation.recipe.model_dump(mode="json", exclude={"output"})
        return hashed([recipe, [self.scored(candidate) for candidate in candidates]])


def without_places(content: Any) -> Any:
    """Returns a recipe without the places that it names."""
    if isinstance(content, Mapping):
        return {key: without_places(value) for key, value in content.items() if key not in PLACES}
    return [without_places(value) for value in content] if isinstance(content, list | tuple) else content


@dataclass(frozen=True)
class Cells:
    """The cells of one comparison."""

    folder: Path

    def find(self, key: str) -> Cell | None:
        """Returns a finished cell; None where there is none, or one that is damaged."""
        file = self.folder / f"{key}.json"
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
            return Cell(row, read_sums(file.with_suffix(".npz")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            logger.warning("%s is damaged (%s): it is computed again", file, type(error).__name__)
            return None

    def keep(self, key: str, cell: Cell) -> None:
        """Writes a cell; it counts as finished once its row is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{key}.npz", packed(cell.sums))
        write_whole(self.folder / f"{key}.json", (json.dumps(cell.row, indent=1) + "\n").encode())

    def note(self, key: str) -> dict[str, Any] | None:
        """Returns what was noted under a key."""
        try:
            found = json.loads((self.folder / f"{key}.note.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_note(self, key: str, content: Mapping[str, Any]) -> None:
        """Notes something that need not be found out again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{key}.note.json", (json.dumps(dict(content)) + "\n").encode())


def packed(sums: Mapping[str, RowSums]) -> bytes:
    """Returns what rows add to scores as an archive of arrays; the key says task, kind and direction."""
    buffer = io.BytesIO()
    arrays: Any = {f"{found.kind}|{int(found.falling)}|{task}": found.rows for task, found in sums.items()}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def read_sums(file: Path) -> dict[str, RowSums]:
    """Returns what rows add to scores, by task."""
    found = {}
    with np.load(file, allow_pickle=False) as archive:
        for key in archive.files:
            kind, falling, task = key.split("|", 2)
            found[task] = RowSums(np.asarray(archive[key], dtype=np.float64), kind, bool(int(falling)))
    return found
