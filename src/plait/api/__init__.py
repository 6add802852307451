"""What Plait does, as functions: the command line calls these and prints what they return.

They are imported when first used: what needs no torch does not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.api.artifacts import evaluate, export, load, open_artifact
    from plait.api.catalog import methods, schema
    from plait.api.checking import check
    from plait.api.conversion import convert
    from plait.api.inspection import inspect
    from plait.api.jobs import amalgamate, compare, ensemble, estimate, finetune, merge, posteriors, run
    from plait.api.pages import report

PLACES = {
    "artifacts": ("evaluate", "export", "load", "open_artifact"),
    "catalog": ("methods", "schema"),
    "checking": ("check",),
    "conversion": ("convert",),
    "inspection": ("inspect",),
    "jobs": ("amalgamate", "compare", "ensemble", "estimate", "finetune", "merge", "posteriors", "run"),
    "pages": ("report",),
}
__all__ = [
    "amalgamate",
    "check",
    "compare",
    "convert",
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
    "report",
    "run",
    "schema",
]


def __getattr__(name: str) -> Any:
    for module, names in PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"plait.api.{module}"), name)
    raise AttributeError(f"module 'plait.api' has no attribute {name!r}")
