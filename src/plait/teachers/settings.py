"""What decides the numbers in a posterior store, and what only decides how they are computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from plait.errors import RecipeError, did_you_mean, listed

Keep = Literal["none", "features", "layers"]
Stop = Literal["never", "certain", "likely"]
KEEPS: tuple[Keep, ...] = ("none", "features", "layers")
"""Each keeps what the one before keeps, and more."""
STOPS: tuple[Stop, ...] = ("never", "certain", "likely")
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
        if problems := list(self._problems()):
            raise RecipeError(listed(problems))

    def _problems(self) -> list[str]:
        least = {"passes": 0, "last_layers": 0, "batch_size": 1, "max_length": 1}
        found = [
            f"{name} is {value} (expected {low} or more)"
            for name, low in least.items()
            if (value := getattr(self, name)) is not None and value < low
        ]
        if self.dropout is not None and not 0 < self.dropout < 1:
            found.append(f"dropout is {self.dropout} (expected a rate between 0 and 1)")
        choices = {"keep": KEEPS, "stop": STOPS}
        return found + [
            f"unknown {name} {getattr(self, name)!r}{did_you_mean(str(getattr(self, name)), known)}"
            for name, known in choices.items()
            if getattr(self, name) not in known
        ]

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
