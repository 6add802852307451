"""Asking a model out of a folder: what a damaged config or tokenizer makes of it shows only then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from plait.boundary import reading
from plait.errors import SourceError


def named(model: Any) -> str:
    """Returns where a model came from, or its class where it was not loaded."""
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


@contextmanager
def answering(model: Any) -> Iterator[None]:
    """Turns what a model raises inside over inputs into one `SourceError`."""
    advice = "config.json or tokenizer may not be those of the weights"
    with reading(named(model), "the model fails on texts", advice=advice):
        yield


def check_answers(model: Any, logits: Mapping[str, Tensor]) -> None:
    """Raises `SourceError` where a model's logits are not numbers: whatever is said of them would be made up."""
    wrong = next((name for name, values in logits.items() if not bool(values.isfinite().all())), None)
    if wrong is not None:
        raise SourceError(
            f"{named(model)}: its {wrong.replace('_', ' ')} for some texts are NaN or Inf: its weights are damaged, "
            "train or download it again"
        )
