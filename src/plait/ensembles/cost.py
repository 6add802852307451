"""Parameters, passes and bytes of an ensemble, known from configurations alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plait.checkpoints.parameter_names import skeleton
from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.factors import factor_parameters
from plait.ensembles.method import ONE_BY_ONE, Build
from plait.ensembles.modeling import ENSEMBLES

if TYPE_CHECKING:
    from plait.ensembles.plan import EnsemblePlan


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


def sizes_of(job: EnsemblePlan) -> dict[str, int]:
    """Returns how many parameters are saved, how many a prediction depends on, and those of separate models.

    What is trained as `factors` is saved as what they make of the layers: every member's own.
    """
    choice, found = job.choice, size(job.config, job.kind)
    if choice.build is Build.FACTORS:
        model: Any = skeleton(ENSEMBLES[job.kind], job.config, job.sources[0].origin)
        choice.factorise(model)
        written = size(EnsembleConfig(**{**job.config.to_dict(), "shared_layers": 0}), job.kind)
        return {
            "saved": written.parameters,
            "live": written.live,
            "separate": found.separate,
            "factors": factor_parameters(model),
        }
    if not choice.alone:
        return {"saved": found.parameters, "live": found.live, "separate": found.separate}
    several = 1 if choice.lone or choice.plain else job.members
    return {
        "saved": several * found.parameters,
        "live": several * found.live,
        "separate": job.members * found.parameters,
    }


def costs_of(job: EnsemblePlan) -> dict[str, float]:
    """Returns forward passes of one encoder per example: of a training step, of all epochs, of a prediction."""
    choice, depth, recipe = job.choice, job.config.num_hidden_layers, job.recipe
    trained = 1 if choice.lone else job.members
    if choice.taught:
        step, training = _taught(job)
    else:
        # Models of their own share nothing below the layer from which on members differ.
        models = trained if choice.alone else 1
        step = training_cost(trained // models, depth, job.depth, replay=recipe.replay)
        step += job.noise.extra_cost() * trained // models * (1 - job.depth / depth)
        step *= models if recipe.epochs else 0
        if choice.build is Build.BRANCHES:
            share = float(choice.option("share"))
            step *= (1 - share + trained * share) / trained
        training = step * recipe.epochs
    asked = job.members if choice.passes else inference_cost(trained, depth, job.shared_layers() or 0)
    costs = {"training_step": step, "training": training, "prediction": 1 if choice.plain else asked}
    return {name: round(float(value), 3) for name, value in costs.items()}


def _taught(job: EnsemblePlan) -> tuple[float, float]:
    """Returns what a labelled text costs an epoch, and in all: its members, what they are asked, and what learns.

    3M, and 3 (1 + U/N) for the one that learns on N labelled texts and U others; all are asked by all members once.
    Where no text has a label, a text without one is counted.
    """
    members = 0 if job.teachers else job.members
    known = 0 if job.examples is None else len(job.examples)
    every = known + sum(texts.count() for texts in job.texts)
    ratio = every / known if known else 1.0
    student = 3 * ratio * job.student_schedule().epochs
    training = 3 * members * job.recipe.epochs + job.members * ratio + student
    return 3 * members + 3 * ratio, training


def bytes_needed(job: EnsemblePlan, states: int) -> float:
    """Returns the most bytes that lie on the disk at once while an ensemble is trained: its result, and `states`."""
    sizes = job.sizes()
    one_by_one = job.choice.build in ONE_BY_ONE and not job.teachers  # what is finished waits for the others
    waiting = sizes["separate"] * (2 if job.choice.taught else 1) if one_by_one else 0
    learning = float(sizes.get("factors", sizes["saved"]))
    if job.choice.build is Build.SEPARATE:
        learning /= job.members
    return 4 * (sizes["saved"] + waiting + states * learning)
