"""What Plait does, as functions: the command line calls these and prints what they return."""

from __future__ import annotations

from plait.api.artifacts import evaluate, export, inspect, load, open_artifact
from plait.api.catalog import methods
from plait.api.jobs import amalgamate, check, ensemble, estimate, finetune, merge, posteriors, run
from plait.api.recipe_schema import schema

__all__ = [
    "amalgamate",
    "check",
    "ensemble",
    "estimate",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "load",
    "merge",
    "methods",
    "open_artifact",
    "posteriors",
    "run",
    "schema",
]
