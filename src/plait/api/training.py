"""Fine-tuning: makes sources where a user has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def finetune(base: str | Path, data: Any, out: str | Path, **options: Any) -> dict[str, Any]:
    """Returns the report of a fine-tuned checkpoint written to `out`; see `plait.training.finetune` for options.

    Raises:
        PlaitError: unusable base or data, existing output, accelerate missing.
    """
    from plait.evaluation import evaluate_model
    from plait.training import finetune as train

    return train(base, data, out, **{"score": evaluate_model, **options})
