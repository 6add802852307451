"""What an ensemble will weigh and cost, known from configurations alone: nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from plait.checkpoints.naming import skeleton
from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.modeling import ENSEMBLES


@dataclass(frozen=True)
class Size:
    """How large an ensemble is.

    Attributes:
        parameters: all that is saved: the encoder once, private layers and heads by member.
        live: those that a prediction depends on; tanh heads do not look at a shared encoder's pooler.
        separate: the parameters of as many separate models.
    """

    parameters: int
    live: int
    separate: int

    @property
    def megabytes(self) -> float:
        """Returns the size of the file in float32, in 10⁶ bytes."""
        return self.parameters * 4 / 1e6


def size(config: EnsembleConfig, kind: str = "sequence_classification") -> Size:
    """Returns the size of the ensemble that a configuration describes, of sequence or token classifiers."""
    parameters, live = _counted(config, kind)
    alone = EnsembleConfig(**{**config.to_dict(), "members": 1, "shared_layers": "all"})
    return Size(parameters, live, config.members * _counted(alone, kind)[0])


def _counted(config: EnsembleConfig, kind: str) -> tuple[int, int]:
    found = list(skeleton(ENSEMBLES[kind], config, config.encoder.model_type).parameters())
    return sum(p.numel() for p in found), sum(p.numel() for p in found if p.requires_grad)


def training_cost(members: int, depth: int, replicate_at: int, *, replay: bool = False) -> float:
    """Returns what a training step costs, in forward passes of one encoder: 3F · [ρ + M (1−ρ)].

    ρ is the share of the layers below the first whose states differ by member. A backward pass counts as two forward
    passes; replaying the members computes what is above ρ once more. Heads cost next to nothing.
    """
    below = replicate_at / depth
    return 3 * below + (4 if replay else 3) * members * (1 - below)


def inference_cost(members: int, depth: int, shared_layers: int) -> float:
    """Returns what a prediction costs, in forward passes of one encoder: k/L + M (1 − k/L)."""
    below = shared_layers / depth
    return below + members * (1 - below)
