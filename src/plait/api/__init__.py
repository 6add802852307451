"""What Plait does, as functions: the command line calls these and prints what they return."""

from plait.api.amalgamating import amalgamate
from plait.api.evaluating import evaluate
from plait.api.exporting import export
from plait.api.inspecting import inspect, methods
from plait.api.merging import merge
from plait.api.running import check, run
from plait.api.scoring import posteriors
from plait.api.statistics import estimate
from plait.api.training import finetune
from plait.merging.merged import Merged


def load(folder: str) -> Merged:
    """Returns a merged checkpoint: `.tasks`, `.task(name)`, `.predict(texts, task=…)`, `.tokenizer`, `.manifest`.

    Raises:
        SourceError: not a merged checkpoint, or a damaged one.
    """
    return Merged(folder)


__all__ = [
    "amalgamate",
    "check",
    "estimate",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "load",
    "merge",
    "methods",
    "posteriors",
    "run",
]
