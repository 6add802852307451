"""Tasks of lm-evaluation-harness, where that is installed; apart because it is not one of Plait's own libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plait.errors import RecipeError, one_line

PREFERRED = ("acc_norm", "acc", "exact_match", "f1")
"""Metrics of which the first that a task has stands for it."""


def check_harness(tasks: Sequence[str]) -> None:
    """Raises `RecipeError` where tasks are asked for and lm-evaluation-harness is not installed."""
    if tasks and find_spec("lm_eval") is None:
        raise RecipeError(
            f"tasks {', '.join(tasks)} come from lm-evaluation-harness, which is not installed: "
            "pip install 'plait[harness]', or give --data FILE for perplexity"
        )


def harness_scores(
    folder: Path, tasks: Sequence[str], *, batch_size: int, limit: int | None, seed: int
) -> dict[str, dict[str, float]]:
    """Returns the metrics of each task as lm-evaluation-harness computes them, and `examples`, their number.

    Raises:
        RecipeError: it is not installed, knows no such task, or cannot load what a task needs.
    """
    check_harness(tasks)
    import lm_eval

    settings: dict[str, Any] = {
        "model": "hf", "model_args": {"pretrained": str(folder)}, "tasks": list(tasks), "batch_size": batch_size,
        "limit": limit, "bootstrap_iters": 0, "log_samples": False,
        "random_seed": seed, "numpy_random_seed": seed, "torch_random_seed": seed, "fewshot_random_seed": seed,
    }  # fmt: skip
    try:
        found = lm_eval.simple_evaluate(**settings)
    except (ValueError, KeyError, OSError, ConnectionError, ImportError) as error:
        raise RecipeError(f"tasks {', '.join(tasks)}: lm-evaluation-harness says: {one_line(error)}") from error
    counts = found.get("n-samples", {})
    return {
        task: {**metrics_of(metrics), "examples": int(counts.get(task, {}).get("effective", 0))}
        for task, metrics in found["results"].items()
    }


def metrics_of(found: Mapping[str, Any]) -> dict[str, float]:
    """Returns a task's metrics without the harness's filters and standard errors: `acc,none` is `acc`."""
    named = {str(name).partition(",")[0]: value for name, value in found.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in named.items() if not name.endswith("_stderr")}


def primary_in(metrics: Mapping[str, float]) -> str:
    """Returns the metric that stands for a task."""
    return next((name for name in PREFERRED if name in metrics), next(iter(metrics)))
