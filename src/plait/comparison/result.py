"""A comparison on disk: its table, the choice, the recipe of each candidate; read without any weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from plait.boundary import parse_json, read_text
from plait.checkpoints.writer import atomic_folder
from plait.comparison.words import by_score, table
from plait.errors import RecipeError, SourceError, did_you_mean
from plait.evaluation.notebook import html
from plait.recipe import parse_recipe

if TYPE_CHECKING:
    import pandas as pd

ANSWER = "comparison.json"
PAGE = "index.html"


@dataclass(frozen=True, repr=False)
class Comparison:
    """What became of some checkpoints: `.table`, `.best`, `.recommended`, `.recipe(id)`, `.save(path)`."""

    artifact: ClassVar = "comparison"
    folder: Path

    def __repr__(self) -> str:
        chosen = self.recommended
        return f"Comparison({str(self.folder)!r}, candidates={len(self.report['candidates'])}, recommended={chosen!r})"

    def _repr_html_(self) -> str:
        chosen = self.report["recommended"]
        facts = {
            "folder": self.folder, "recommended": None if chosen is None else chosen["id"],
            "because": None if chosen is None else chosen["reason"], "page": self.page,
        }  # fmt: skip
        return html("Comparison", facts, table(self.report))

    @cached_property
    def report(self) -> dict[str, Any]:
        """Returns all that was found out, as plain data.

        Raises:
            SourceError: the comparison is not finished, or damaged.
        """
        file = self.folder / ANSWER
        if not file.is_file():
            raise SourceError(f"{self.folder}: the comparison is not finished; the command that makes it goes on")
        found: dict[str, Any] = parse_json(read_text(file), file, advice="compare again")
        return found

    @cached_property
    def table(self) -> pd.DataFrame:
        """Returns a row for each candidate, the best first: scores, intervals, sizes, times; by id."""
        import pandas as pd

        return pd.DataFrame([self._row(row) for row in by_score(self.report)]).set_index("id")

    @staticmethod
    def _row(row: Mapping[str, Any]) -> dict[str, Any]:
        low, high = row["interval"] or (None, None)
        worst, latency = row["worst"] or {}, row["latency"] or {}
        return {
            "id": row["id"], "way": row["way"], "method": row["method"], "status": row["status"],
            "mean_relative": row["mean_relative"], "low": low, "high": high,
            "worst_task": worst.get("task"), "worst": worst.get("relative"),
            **{task: score["value"] for task, score in row["scores"].items()},
            "parameters": row["parameters"], "megabytes": None if row["bytes"] is None else row["bytes"] / 1e6,
            "seconds_per_text": latency.get("1"), "seconds_per_text_32": latency.get("32"),
            "seconds": row["seconds"], "reason": row["reason"],
        }  # fmt: skip

    @property
    def best(self) -> str | None:
        """Returns the candidate with the highest mean relative score."""
        return self.report["best"]  # type: ignore[no-any-return]

    @property
    def recommended(self) -> str | None:
        """Returns the candidate to take; `separate` where none keeps enough."""
        chosen = self.report["recommended"]
        return None if chosen is None else chosen["id"]

    @property
    def failed(self) -> dict[str, str]:
        """Returns the candidates that failed, and why."""
        return {row["id"]: row["reason"] for row in self.report["candidates"] if row["status"] == "failed"}

    @property
    def page(self) -> Path | None:
        """Returns the page to look at, where there is one."""
        file = self.folder / PAGE
        return file if file.is_file() else None

    def candidate(self, name: str | None = None) -> dict[str, Any]:
        """Returns all that is known of one candidate, by default of the recommended one.

        Raises:
            RecipeError: no such candidate (did you mean), or none is recommended.
        """
        wanted = self.recommended if name is None else name
        if wanted is None:
            raise RecipeError(f"{self.folder}: nothing is recommended; name a candidate")
        every = {row["id"]: row for row in self.report["candidates"]}
        if wanted not in every:
            raise RecipeError(f"{self.folder} has no candidate {wanted!r}{did_you_mean(wanted, every)}")
        found: dict[str, Any] = every[wanted]
        return found

    def recipe(self, name: str | None = None) -> dict[str, Any]:
        """Returns the recipe of a candidate, ready for `plait.run`; by default of the recommended one.

        Raises:
            RecipeError: no such candidate, or one that nothing is made for.
        """
        row = self.candidate(name)
        if row["recipe"] is None:
            why = row["reason"] or "the sources stay as they are"
            raise RecipeError(f"{row['id']} has no recipe: {why}")
        return dict(row["recipe"])

    def path(self, name: str | None = None) -> Path | None:
        """Returns where a candidate's model lies; None where it was not kept."""
        place = self.candidate(name)["folder"]
        return None if place is None else self.folder / place

    def save(self, path: str | Path, name: str | None = None, *, overwrite: bool = False) -> Path:
        """Returns the folder to which a candidate's model has been written, by default the recommended one.

        A model that was not kept is made again.

        Raises:
            RecipeError: no such candidate, or one that nothing is made for.
            OutputError: the folder exists.
        """
        place = self.path(name)
        if place is not None and place.is_dir():
            with atomic_folder(path, overwrite=overwrite) as folder:
                shutil.copytree(place, folder, dirs_exist_ok=True)
            return Path(path)
        return made(parse_recipe({**self.recipe(name), "output": str(path)}), overwrite=overwrite)


def made(recipe: Any, *, overwrite: bool) -> Path:
    """Returns the folder of what a recipe makes."""
    from plait.amalgamation.run import run_amalgamation
    from plait.ensembles.run import run_ensemble
    from plait.merging.run import run_merge

    makers: dict[str, Any] = {"merge": run_merge, "ensemble": run_ensemble, "amalgamate": run_amalgamation}
    makers[recipe.combine](recipe, overwrite=overwrite)
    return Path(recipe.output)
