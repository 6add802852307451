"""What decides the numbers in a posterior store, and what only decides how they are computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from plait.errors import RecipeError, listed
from plait.registry import Above, Limits, Option, option_model, options_of, refused

if TYPE_CHECKING:
    from pydantic import BaseModel

Keep = Literal["none", "features", "layers"]
Stop = Literal["never", "certain", "likely"]
KEEPS: tuple[Keep, ...] = ("none", "features", "layers")
"""Each keeps what the one before keeps, and more."""
LIMITS: Mapping[str, Limits] = {
    "passes": (0, math.inf), "last_layers": (0, math.inf), "batch_size": (1, math.inf), "max_length": (1, math.inf),
    "dropout": Above(0, 1),
}  # fmt: skip
ROUND = 4
"""Monte Carlo passes between two looks at whether the routing is decided."""


@dataclass(frozen=True)
class Settings:
    """How texts are scored.

    Attributes:
        passes: K, forward passes with dropout; 0 for the deterministic pass alone.
        seed: Of the dropout masks.
        last_layers: Dropout in so many last layers and the head only; what lies below is computed once.
        dropout: The rate for those places where the teacher's own is 0.
        keep: Also keep the input of the classifier (`features`), or that and the mean of each hidden state (`layers`).
        batch_size: Texts at a time.
        max_length: Tokens a text is cut at.
        stop: Leave a text out of later passes when its routing cannot change (`certain`) or will hardly (`likely`).
    """

    passes: int = 16
    seed: int = 0
    last_layers: int | None = None
    dropout: float | None = None
    keep: Keep = "none"
    batch_size: int = 64
    max_length: int | None = None
    stop: Stop = "never"

    def __post_init__(self) -> None:
        options, model = _checked()
        values = {name: value for name, value in asdict(self).items() if value is not None}
        if problems := refused(options, model, values):
            raise RecipeError(listed(problems))

    @property
    def deciding(self) -> dict[str, Any]:
        """Returns what decides the numbers: stores that differ in it do not mix."""
        return {
            name: value for name, value in asdict(self).items() if name not in {"keep", "batch_size"}
        }  # fmt: skip

    @property
    def rounds(self) -> tuple[int, ...]:
        """Returns the number of passes in each round: all at once unless texts may stop early."""
        if self.stop == "never" or self.passes <= ROUND:
            return (self.passes,)
        return tuple(min(ROUND, self.passes - start) for start in range(0, self.passes, ROUND))

    def keeps(self, what: Keep) -> bool:
        """Says whether `what` is kept."""
        return KEEPS.index(self.keep) >= KEEPS.index(what)


@cache
def _checked() -> tuple[Mapping[str, Option], type[BaseModel]]:
    """Returns the fields of `Settings` as options, and the model that checks their values."""
    options = {option.name: option for option in options_of(Settings, LIMITS)}
    return options, option_model("Settings", options)
