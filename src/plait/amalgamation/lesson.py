"""From posteriors to what a student is taught: who is believed on each text, and the target that follows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from plait.amalgamation.calibration import temperature_from_passes
from plait.amalgamation.disagreement import disagreement
from plait.amalgamation.evidence import Evidence
from plait.amalgamation.gate import GATES, GateEntry
from plait.amalgamation.judging import agreeing, judge, panel_told
from plait.amalgamation.labels import LabelSpace
from plait.amalgamation.objective import OBJECTIVES, ObjectiveEntry
from plait.amalgamation.panel import JOINT, Verdict
from plait.amalgamation.routing import LEAST_MARGIN, Routing, summary
from plait.amalgamation.targets import consensus, hard, probabilities, soft
from plait.statistics.posteriors import Posterior

logger = logging.getLogger("plait")

TARGETS = {"hard": hard, "soft": soft, "consensus": consensus}
MEMBERS = {
    "auto": ("mahalanobis", "vocabulary", "update", "base", "entropy"),
    "fitted": ("mahalanobis", "vocabulary", "update", "base", "entropy", "energy", "max_logit"),
}
"""Which gates may have a say in a joint one."""


@dataclass(frozen=True)
class Choices:
    """How posteriors become targets.

    Attributes:
        gate: Who decides which teacher is competent: a registered gate, or `auto` or `fitted`, which weigh several.
        temperature: τ of the soft gate; the gate's own by default.
        target: The chosen teacher's posterior, all of them, weighted, or what all agree on, weighted.
        margin: Whether texts count by how clear the choice was.
        agreement: Whether texts count by how many gates of a joint one would have chosen the same.
        posterior: One deterministic pass, or the Monte Carlo mean.
        calibrate: Bring the teachers to one scale first, without labels.
        objective: What the student minimises.
        options: The objective's own options.
        gate_options: The gate's own options.
    """

    gate: str = "muka"
    temperature: float | None = None
    target: Literal["hard", "soft", "consensus"] = "hard"
    margin: bool = True
    agreement: bool = False
    posterior: Literal["single", "mean"] = "single"
    calibrate: Literal["none", "temperature", "standardize", "auto"] = "none"
    objective: str = "muka"
    options: Mapping[str, Any] = field(default_factory=dict)
    gate_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gated(self) -> bool:
        """Says whether the gate decides what is taught; else the objective takes all teachers on every text."""
        return "target" in self.objective_entry.inputs

    @property
    def softness(self) -> float:
        """Returns τ of the soft gate."""
        if self.temperature is not None:
            return float(self.temperature)
        return 1.0 if self.joint else float(self.gate_entries[0].facts["temperature"])

    @property
    def joint(self) -> bool:
        """Says whether several gates decide together."""
        return self.gate in JOINT

    @property
    def gate_entries(self) -> tuple[GateEntry, ...]:
        """Returns the registered gate, or all that may have a say in a joint one."""
        return tuple(GATES[name] for name in (MEMBERS[self.gate] if self.joint else (self.gate,)))

    @property
    def objective_entry(self) -> ObjectiveEntry:
        """Returns the registered objective."""
        return OBJECTIVES[self.objective]

    @property
    def needs_passes(self) -> bool:
        """Says whether the posteriors must hold Monte Carlo passes."""
        return (
            any(entry.facts["passes"] for entry in self.gate_entries)
            or self.posterior == "mean"
            or self.calibrate == "temperature"
        )

    @property
    def keep(self) -> Literal["none", "features", "layers"]:
        """Returns what the store must hold besides logits: the most that gate or objective asks for."""
        wanted = {self.objective_entry.facts["keep"], *(entry.facts["keep"] for entry in self.gate_entries)}
        return "layers" if "layers" in wanted else "features" if "features" in wanted else "none"


@dataclass(frozen=True)
class Lesson:
    """What is taught, text by text.

    Attributes:
        space: The student's labels.
        routing: Whom the gate believes.
        target: [n, C], rows sum to 1.
        weight: [n], how much each text counts.
        temperatures: Per teacher T of its softmax.
        verdict: How a joint gate came to its routing.
    """

    space: LabelSpace
    routing: Routing
    target: Tensor
    weight: Tensor
    temperatures: tuple[float, ...]
    verdict: Verdict | None = None


def lesson(
    posteriors: Sequence[Posterior],
    space: LabelSpace,
    choices: Choices,
    truth: Tensor | None = None,
    evidence: Evidence | None = None,
) -> Lesson:
    """Returns the lesson that the teachers' posteriors and a gate give.

    Args:
        posteriors: Per teacher, of the same n texts.
        space: The union of the teachers' labels.
        choices: How.
        truth: [n] the texts' own labels as positions in the union, −1 where unknown; the gate `oracle` needs them.
        evidence: What else is known of the texts; the labelled ones at their end are not taught.

    Raises:
        DataError: When the gate needs what the posteriors do not hold.
    """
    evidence = evidence or Evidence()
    temperatures = _temperatures(posteriors, choices)
    verdict = judge(posteriors, space, choices, temperatures, truth, evidence)
    count = len(posteriors[0].logits) - evidence.extra
    verdict = verdict.first(count)
    routing = verdict.routing
    # The objective's T is that of teachers and student alike.
    distilled = float(choices.options.get("temperature", 1.0)) if choices.gated else 1.0
    given = [
        probabilities(p.logits, p.mean, posterior=choices.posterior, temperature=t * distilled)[:count]
        for p, t in zip(posteriors, temperatures, strict=True)
    ]
    for warning in disagreement(given, space, space.teachers):
        logger.warning("%s", warning)
    target = TARGETS[choices.target](given, routing, space)
    weight = routing.margin if choices.margin else torch.ones(len(target))
    if choices.agreement and verdict.members:
        weight = weight * agreeing(verdict)
    if choices.margin and choices.gated and float(weight.median()) <= 2 * LEAST_MARGIN:
        logger.warning(
            "the gate %s finds no difference between the best teachers on %d of %d texts, which hardly count: choose "
            "another gate, or --no-margin",
            *(choices.gate, int((weight <= 2 * LEAST_MARGIN).sum()), len(weight)),
        )
    return Lesson(space, routing, target, weight, temperatures, verdict)


def _temperatures(posteriors: Sequence[Posterior], choices: Choices) -> tuple[float, ...]:
    if choices.calibrate != "temperature":
        return tuple(1.0 for _ in posteriors)
    return tuple(temperature_from_passes(p.logits, p.mean) for p in posteriors)


def tables(posteriors: Sequence[Posterior], taught: Lesson, entry: ObjectiveEntry) -> dict[str, Tensor]:
    """Returns what an objective needs of each text, one row a text, ready to join the student's batches.

    What belongs to several teachers is named with the teacher's number behind (`teacher_logits.0`).
    """
    found = {"target": taught.target, "weight": taught.weight}
    for at, posterior in enumerate(posteriors):
        for name, values in _of_teacher(posterior, taught.temperatures[at]).items():
            if name in entry.inputs and values is not None:
                found[f"{name}.{at}"] = values
    return found


def _of_teacher(posterior: Posterior, temperature: float) -> dict[str, Tensor | None]:
    return {
        "teacher_logits": posterior.logits / temperature,
        "teacher_features": posterior.features,
        "teacher_layers": posterior.layers,
    }


def who_taught_what(taught: Lesson, choices: Choices, truth: Tensor | None = None) -> dict[str, Any]:
    """Returns the share of texts per teacher, the margins, and the routing accuracy where labels exist.

    Without a gate every teacher has a part in every text: then only the mean weights are told, those of
    softmax(concat z).
    """
    space = taught.space
    known = torch.stack([space.known(at) for at in range(len(space.teachers))])
    found = summary(taught.routing, space.teachers, truth, known)
    if not choices.gated:
        weights = {name: {"mean_weight": about["mean_weight"]} for name, about in found["teachers"].items()}
        found = {"texts": found["texts"], "teachers": weights}
    if taught.verdict is not None and taught.verdict.members:
        found["panel"] = panel_told(taught.verdict, space, truth, known)
    if any(t != 1 for t in taught.temperatures):
        found["temperatures"] = {
            name: round(t, 4) for name, t in zip(space.teachers, taught.temperatures, strict=True)
        }
    return found
