"""What Plait does, as functions: the command line calls these and prints what they return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plait.amalgamation.student import Student
from plait.api.artifacts import evaluate, export, inspect
from plait.api.catalog import methods
from plait.api.jobs import amalgamate, check, ensemble, estimate, finetune, merge, posteriors, run
from plait.api.recipe_schema import schema
from plait.ensembles.saved import SavedEnsemble
from plait.merging.merged import Merged
from plait.report.record import is_ensemble, is_one_model, is_student


def load(folder: str | Path) -> Any:
    """Returns a merged checkpoint, a student, or an ensemble.

    A merged checkpoint has `.tasks`, `.task(name)`, `.predict(texts, task=…)` and `.tokenizer`; a student `.labels`,
    `.report`, `.predict(texts)`, and its transformers model as `.model`. An ensemble, and the one model that some
    methods make of it, is a transformers model; its tokenizer comes from `AutoTokenizer`, as with all of them.

    Raises:
        SourceError: none of them, or a damaged one.
    """
    if is_ensemble(folder) or is_one_model(folder):
        return SavedEnsemble(Path(folder)).model
    return Student(Path(folder)) if is_student(folder) else Merged(folder)


__all__ = [
    "amalgamate",
    "check",
    "ensemble",
    "estimate",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "is_ensemble",
    "load",
    "merge",
    "methods",
    "posteriors",
    "run",
    "schema",
]
