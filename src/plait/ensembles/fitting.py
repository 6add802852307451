"""Training by method: one ensemble, models side by side or one after another, or what becomes of several in the end."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from plait.checkpoints.sealed import read_sealed, write_sealed
from plait.ensembles.averaging import averaged, branched, greedy, likeness, mean_state
from plait.ensembles.factors import expanded
from plait.ensembles.joint import Joint
from plait.ensembles.learning import (
    PREFERENCE,
    Fit,
    Fitted,
    epochs_done,
    epochs_of,
    losses_of,
    run,
    seeds,
    separately,
)
from plait.ensembles.method import Build
from plait.ensembles.modeling import Ensemble
from plait.errors import PlaitError
from plait.training.processes import first, together
from plait.training.state import seeded

logger = logging.getLogger("plait")
APART = 0.5
"""Cosine between heads below which models are taken not to have started alike."""


def fit(job: Fit) -> Fitted:
    """Returns the trained models of a method."""
    return FITS[(job.teaching or job.objective).choice.build](job)


def _shared(job: Fit) -> Fitted:
    model = job.make(job.members, job.schedule.seed)
    log = run(job, model)
    return Fitted((model,), epochs_of(log), losses_of(log))


def _factors(job: Fit) -> Fitted:
    model = job.make(job.members, job.schedule.seed)
    job.objective.choice.factorise(model)
    log = run(job, model)
    return Fitted((expanded(model),), epochs_of(log), losses_of(log))


def _joint(job: Fit) -> Fitted:
    models = [job.make(1, seed) for seed in seeds(job)]
    log = run(job, Joint(models))
    return Fitted(tuple(models), epochs_of(log), losses_of(log))


def _taught(job: Fit) -> Fitted:
    """Trains the teachers unless they exist, asks them, and trains what learns from them."""
    assert job.lesson is not None
    assert job.teaching is not None
    choice = job.teaching.choice
    told = separately(job) if job.given is None else Fitted((), (), ())
    corpus = job.lesson(told.models)
    if choice.from_soup:
        model = averaged(_alike(told.models if job.given is None else job.given()))
    else:
        model = job.make(1 if choice.plain else job.members, job.schedule.seed)
    own = replace(
        job, data=corpus, objective=job.teaching, state=job.state / "student", schedule=job.taught or job.schedule
    )
    with seeded(own.schedule.seed):
        log = run(own, model)
    return Fitted((model,), (*told.epochs, *epochs_of(log)), (*told.losses, *losses_of(log)))


def _soup(job: Fit) -> Fitted:
    """Averages models that were trained one after another, or exist: all of them, or those that help."""
    told = separately(job) if job.given is None else Fitted(tuple(job.given()), (), ())
    models = _alike(told.models)
    taken: Sequence[int] = range(len(models))
    if job.objective.choice.entry.facts.get("greedy"):
        assert job.judge is not None
        judge = job.judge

        def score_of(chosen: Sequence[int]) -> float:
            return judge(averaged([models[j] for j in chosen]))[PREFERENCE]

        taken = greedy([score_of([j]) for j in range(len(models))], score_of)
    made = averaged([models[j] for j in taken])
    members = told.models if job.given is None else ()
    return replace(told, models=(made,), facts={"averaged": list(taken)}, members=members)


def _alike(models: Sequence[Ensemble]) -> Sequence[Ensemble]:
    """Returns models that are to be averaged; warns of heads that did not start alike, whose mean means little."""
    found = likeness(models)
    if found < APART:
        logger.warning(
            "the heads of these models have a cosine of %.2f: they did not start alike, and the mean of their weights "
            "may be worth little; expected models fine-tuned from one start, head included",
            found,
        )
    return models


def _path(job: Fit) -> Fitted:
    """Averages the weights after the last epochs of one training; each epoch's are kept as it ends."""
    model = job.make(1, job.schedule.seed)
    own = job.judge

    def judge(trained: torch.nn.Module) -> Mapping[str, float]:
        done = len(_kept(job.state))
        if first():
            _keep(trained, job.state / f"epoch-{done:04d}.safetensors")
        together()
        return {} if own is None else own(trained)

    job.state.mkdir(parents=True, exist_ok=True)
    for stale in _kept(job.state)[epochs_done(job.state) if job.resume else 0 :]:
        stale.unlink()
    log = run(replace(job, judge=judge, best=None), model)
    files = _kept(job.state)
    count = max(1, round(job.objective.choice.option("share") * len(files)))
    model.load_state_dict(mean_state([_kept_weights(file) for file in files[-count:]]))
    last = list(range(len(files) - count + 1, len(files) + 1))
    # None of the epochs is kept as it is.
    epochs = [{name: value for name, value in entry.items() if name != "kept"} for entry in epochs_of(log)]
    return Fitted((model,), tuple(epochs), losses_of(log), {"averaged": last})


def _kept(state: Path) -> list[Path]:
    return sorted(state.glob("epoch-*.safetensors"))


def _kept_weights(file: Path) -> dict[str, torch.Tensor]:
    kept = read_sealed(file)
    if kept is None:
        raise PlaitError(f"{file} is damaged: start again without resume")
    return kept[0]


def _keep(model: torch.nn.Module, file: Path, log: Sequence[Mapping[str, float]] = ()) -> None:
    """Writes a model's weights and the log of their training, whole or not at all."""
    write_sealed(file, model.state_dict(), list(log))


def _branches(job: Fit) -> Fitted:
    """Trains a trunk, then round by round M branches of it with noise, whose mean is the next trunk."""
    choice, model = job.objective.choice, job.make(1, job.schedule.seed)
    share, rounds = float(choice.option("share")), max(1, round(choice.option("rounds")))
    plan = job.schedule
    trunk = replace(plan, epochs=plan.epochs * (1 - share))
    part = replace(plan, epochs=plan.epochs * share / rounds, learning_rate=plan.learning_rate * (share or 1))
    log = _stage(replace(job, schedule=trunk), model, "trunk") if trunk.epochs else []
    epochs, losses = [*epochs_of(log)], [*losses_of(log)]
    for number in range(rounds if share else 0):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        states = []
        for j, seed in enumerate(seeds(job)):
            draw = torch.Generator().manual_seed(seed + 7919 * (number + 1))
            model.load_state_dict(branched(state, float(choice.option("noise")), draw))
            own = replace(job, schedule=replace(part, seed=seed + number + 1), best=None, judge=None)
            log = _stage(own, model, f"round-{number}-{j}")
            losses += [{"round": float(number + 1), "member": float(j), **entry} for entry in losses_of(log)]
            states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        model.load_state_dict(mean_state(states))
    return Fitted((model,), tuple(epochs), tuple(losses))


def _stage(job: Fit, model: Ensemble, name: str) -> list[dict[str, float]]:
    """Trains one part of a longer training, unless a run that was stopped had finished it; returns its log."""
    own = replace(job, state=job.state / name)
    done = job.state / f"{name}.safetensors"
    if job.resume and (kept := read_sealed(done)) is not None:
        model.load_state_dict(kept[0])
        shutil.rmtree(own.state, ignore_errors=True)
        return list(kept[1])
    with seeded(job.schedule.seed):
        log = run(own, model)
    if first():
        _keep(model, done, log)
        shutil.rmtree(own.state, ignore_errors=True)
    together()
    return log


FITS: Mapping[Build, Callable[[Fit], Fitted]] = {
    Build.SHARED: _shared,
    Build.FACTORS: _factors,
    Build.JOINT: _joint,
    Build.SEPARATE: separately,
    Build.TAUGHT: _taught,
    Build.SOUP: _soup,
    Build.PATH: _path,
    Build.BRANCHES: _branches,
}
