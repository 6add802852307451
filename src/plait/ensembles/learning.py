"""One training on the one loop: what it needs and gives, and models that are trained one after another."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from plait.checkpoints.sealed import read_sealed, write_sealed
from plait.ensembles.modeling import Ensemble
from plait.ensembles.teaching import Teaching
from plait.ensembles.training import Ensembling, perturbing
from plait.training.loop import Judge, Schedule, TrainingData, train
from plait.training.processes import first, together
from plait.training.state import last_state, seeded

Make = Callable[[int, int], Ensemble]
"""From a number of members and a seed to an ensemble before training."""
Lesson = Callable[[Sequence[Ensemble]], TrainingData]
"""From trained members, or none where the teachers are there already, to texts with what they say of them."""
FINISHED = "finished.safetensors"
PREFERENCE = "preference"
"""The score that decides which epoch is kept; it is no score to report."""


@dataclass(frozen=True)
class Fit:
    """All that one training needs.

    Attributes:
        make: Makes what is trained.
        members: M.
        data: The examples.
        objective: What is minimised.
        schedule: How long and how fast.
        state: Where a stopped run goes on.
        judge: Scores after each epoch.
        best: The score that decides which epoch is kept.
        resume: Whether to go on from `state`.
        alike: Whether members that are trained one after another start with the same head.
        given: Makes members that exist and are not trained; None where there are none.
        lesson: Of methods that teach.
        teaching: What is minimised by what learns from members; `objective` is theirs.
        taught: How long and how fast the student learns; as its teachers by default.
    """

    make: Make
    members: int
    data: TrainingData
    objective: Ensembling | Teaching
    schedule: Schedule
    state: Path
    judge: Judge | None = None
    best: str | None = None
    resume: bool = False
    alike: bool = False
    given: Callable[[], Sequence[Ensemble]] | None = None
    lesson: Lesson | None = None
    teaching: Teaching | None = None
    taught: Schedule | None = None


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        models: One ensemble, or M of one member each.
        epochs: What the judge said after each epoch, of one model after another where they are separate.
        losses: The terms as they went.
        facts: What else there is to say of it, for the record.
        members: The models that taught or were averaged, where they were trained here.
    """

    models: tuple[Ensemble, ...]
    epochs: tuple[dict[str, float], ...]
    losses: tuple[dict[str, float], ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[Ensemble, ...] = ()


def separately(job: Fit) -> Fitted:
    """Returns M models, trained one after another: each with its own order and masks, and a head unless `alike`."""
    models, epochs, losses = [], [], []
    for number, seed in enumerate(seeds(job)):
        own = replace(
            job, members=1, state=job.state / f"member-{number}", schedule=replace(job.schedule, seed=seed)
        )
        with seeded(seed):
            model, log = _once(own, job.schedule.seed if job.alike else seed)
        models.append(model)
        epochs += [{"member": float(number), **entry} for entry in epochs_of(log)]
        losses += [{"member": float(number), **entry} for entry in losses_of(log)]
    return Fitted(tuple(models), tuple(epochs), tuple(losses))


def _once(job: Fit, head: int) -> tuple[Ensemble, Sequence[Mapping[str, float]]]:
    """Returns one of several models, trained unless a run that was stopped had finished it; `head` draws its head."""
    model, weights = job.make(1, head), job.state / FINISHED
    if job.resume and (kept := read_sealed(weights)) is not None:
        model.load_state_dict(kept[0])
        return model, kept[1]
    log = run(job, model)
    if first():
        write_sealed(weights, model.state_dict(), log)
        for done in job.state.glob("checkpoint-*"):
            shutil.rmtree(done)
    together()
    return model, log


def run(job: Fit, model: nn.Module) -> list[dict[str, float]]:
    """Trains a model in place and returns the log."""
    if job.schedule.epochs == 0:
        return []
    trained: Any = model
    with perturbing(model, job.objective.noise):
        log = train(
            trained,
            job.data,
            job.state,
            objective=job.objective,
            schedule=job.schedule,
            judge=job.judge,
            best=None if job.judge is None else job.best,
            checkpoints=True,
            resume=job.resume,
        )
    model.eval()
    return log


def seeds(job: Fit) -> list[int]:
    """Returns a seed per model: the first is that of the single model with the same seed."""
    return [job.schedule.seed + number for number in range(job.members)]


def epochs_done(state: Path) -> int:
    """Returns how many epochs the last state holds that a stopped run saved whole."""
    found = last_state(state)
    if found is None:
        return 0
    return math.ceil(float(json.loads((Path(found) / "trainer_state.json").read_text())["epoch"]))


def epochs_of(log: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], ...]:
    """Returns what the judge said after each epoch; the one whose weights were given back is `kept`."""
    judged = [entry for entry in log if any(name.startswith("eval_") for name in entry)]
    best = max(judged, key=lambda entry: entry.get(f"eval_{PREFERENCE}", 0.0), default=None)
    return tuple(
        {
            name.removeprefix("eval_"): round(value, 6)
            for name, value in entry.items()
            if name not in ("step", f"eval_{PREFERENCE}")
        }
        | ({"kept": True} if entry is best else {})
        for entry in judged
    )


def losses_of(log: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], ...]:
    """Returns the terms as they went."""
    kept = ("loss", "epoch", "step")
    return tuple(
        {name: round(value, 6) for name, value in entry.items() if name in kept or name.startswith("loss/")}
        for entry in log
        if "loss" in entry
    )
