"""Training by method: one ensemble, models side by side, models one after another, or factors that are written out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from plait.ensembles.factors import add_factors, expanded
from plait.ensembles.joint import Joint
from plait.ensembles.method import Build
from plait.ensembles.modeling import Ensemble
from plait.ensembles.training import Ensembling, perturbing
from plait.training.loop import Judge, Schedule, TrainingData, train
from plait.training.processes import first, together
from plait.training.state import seeded

Make = Callable[[int, int], Ensemble]
"""From a number of members and a seed to an ensemble before training."""
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
    """

    make: Make
    members: int
    data: TrainingData
    objective: Ensembling
    schedule: Schedule
    state: Path
    judge: Judge | None = None
    best: str | None = None
    resume: bool = False


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        models: One ensemble, or M of one member each.
        epochs: What the judge said after each epoch, of one model after another where they are separate.
        losses: The terms as they went.
    """

    models: tuple[Ensemble, ...]
    epochs: tuple[dict[str, float], ...]
    losses: tuple[dict[str, float], ...]


def fit(job: Fit) -> Fitted:
    """Returns the trained models of a method."""
    return FITS[job.objective.choice.build](job)


def _shared(job: Fit) -> Fitted:
    model = job.make(job.members, job.schedule.seed)
    log = _run(job, model)
    return Fitted((model,), _epochs(log), _losses(log))


def _factors(job: Fit) -> Fitted:
    model = job.make(job.members, job.schedule.seed)
    entry, options = job.objective.choice.entry, job.objective.choice.options
    add_factors(model, float(options.get("spread", entry.options["spread"].default)))
    log = _run(job, model)
    return Fitted((expanded(model),), _epochs(log), _losses(log))


def _joint(job: Fit) -> Fitted:
    models = [job.make(1, seed) for seed in _seeds(job)]
    log = _run(job, Joint(models))
    return Fitted(tuple(models), _epochs(log), _losses(log))


def _separate(job: Fit) -> Fitted:
    models, epochs, losses = [], [], []
    for number, seed in enumerate(_seeds(job)):
        own = replace(
            job, members=1, state=job.state / f"member-{number}", schedule=replace(job.schedule, seed=seed)
        )
        with seeded(seed):
            model, log = _once(own)
        models.append(model)
        epochs += [{"member": float(number), **entry} for entry in _epochs(log)]
        losses += [{"member": float(number), **entry} for entry in _losses(log)]
    return Fitted(tuple(models), tuple(epochs), tuple(losses))


def _once(job: Fit) -> tuple[Ensemble, Sequence[Mapping[str, float]]]:
    """Returns one of several models, trained unless a run that was stopped had finished it."""
    model, weights, record = job.make(1, job.schedule.seed), job.state / FINISHED, job.state / "log.json"
    if job.resume and weights.is_file():
        model.load_state_dict(load_file(weights))
        return model, json.loads(record.read_text())
    log = _run(job, model)
    if first():
        record.write_text(json.dumps(log))
        partial = weights.with_suffix(".partial")
        save_file({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}, partial)
        partial.rename(weights)
        for done in job.state.glob("checkpoint-*"):
            shutil.rmtree(done)
    together()
    return model, log


def _run(job: Fit, model: nn.Module) -> list[dict[str, float]]:
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


def _seeds(job: Fit) -> list[int]:
    """Returns a seed per model: the first is that of the single model with the same seed."""
    return [job.schedule.seed + number for number in range(job.members)]


def _epochs(log: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], ...]:
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


def _losses(log: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], ...]:
    kept = ("loss", "epoch", "step")
    return tuple(
        {name: round(value, 6) for name, value in entry.items() if name in kept or name.startswith("loss/")}
        for entry in log
        if "loss" in entry
    )


FITS: Mapping[Build, Callable[[Fit], Fitted]] = {
    Build.SHARED: _shared,
    Build.FACTORS: _factors,
    Build.JOINT: _joint,
    Build.SEPARATE: _separate,
}
