"""Training by method: one ensemble, models side by side or one after another, or one model out of several."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait.checkpoints.sealed import read_sealed, write_sealed
from plait.encoders.modes import seeded
from plait.ensembles.averaging import averaged, branched, greedy, likeness, mean_state
from plait.ensembles.distillation import Teaching
from plait.ensembles.factors import expanded
from plait.ensembles.method import Build
from plait.ensembles.modeling import Ensemble, EnsembleOutput
from plait.ensembles.objective import Ensembling, perturbing
from plait.errors import PlaitError
from plait.training.state import first, last_state, together, trainer_state
from plait.training.trainer import Evaluator, Schedule, TrainingData, train

Make = Callable[[int, int], Ensemble]
"""From a number of members and a seed to an ensemble before training."""
TrainingTask = Callable[[Sequence[Ensemble]], TrainingData]
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
    judge: Evaluator | None = None
    best: str | None = None
    resume: bool = False
    alike: bool = False
    given: Callable[[], Sequence[Ensemble]] | None = None
    lesson: TrainingTask | None = None
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
        one = replace(
            job, members=1, state=job.state / f"member-{number}", schedule=replace(job.schedule, seed=seed)
        )
        with seeded(seed):
            model, log = _once(one, job.schedule.seed if job.alike else seed)
        models.append(model)
        epochs += [{"member": float(number), **entry} for entry in epochs_of(log)]
        losses += [{"member": float(number), **entry} for entry in losses_of(log)]
    return Fitted(tuple(models), tuple(epochs), tuple(losses))


def _once(job: Fit, head: int) -> tuple[Ensemble, Sequence[Mapping[str, float]]]:
    """Returns one of several models, trained unless a run that was stopped had finished it; `head` draws its head."""
    model, weights = job.make(1, head), job.state / FINISHED
    if job.resume and (sealed := read_sealed(weights)) is not None:
        model.load_state_dict(sealed[0])
        return model, sealed[1]
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
    last = last_state(state)
    if last is None:
        return 0
    return math.ceil(float(trainer_state(Path(last))["epoch"]))


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
    plain = ("loss", "epoch", "step")
    return tuple(
        {name: round(value, 6) for name, value in entry.items() if name in plain or name.startswith("loss/")}
        for entry in log
        if "loss" in entry
    )


class Joint(nn.Module):
    """Models of one member each; their logits stand side by side as those of members."""

    def __init__(self, models: Sequence[Ensemble]) -> None:
        """Keeps the models."""
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, **inputs: Any) -> EnsembleOutput:
        """Returns what the models say, each from a pass of its own."""
        asked = {"output_members": True, **inputs}
        members: Tensor = torch.cat([model(**asked).member_logits for model in self.models])
        return EnsembleOutput(logits=members.mean(0), member_logits=members)


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
    teachers = separately(job) if job.given is None else Fitted((), (), ())
    corpus = job.lesson(teachers.models)
    if choice.from_soup:
        model = averaged(_alike(teachers.models if job.given is None else job.given()))
    else:
        model = job.make(1 if choice.plain else job.members, job.schedule.seed)
    learning = replace(
        job, data=corpus, objective=job.teaching, state=job.state / "student", schedule=job.taught or job.schedule
    )
    with seeded(learning.schedule.seed):
        log = run(learning, model)
    return Fitted((model,), (*teachers.epochs, *epochs_of(log)), (*teachers.losses, *losses_of(log)))


def _soup(job: Fit) -> Fitted:
    """Averages models that were trained one after another, or exist: all of them, or those that help."""
    trained = separately(job) if job.given is None else Fitted(tuple(job.given()), (), ())
    models = _alike(trained.models)
    taken: Sequence[int] = range(len(models))
    if job.objective.choice.entry.facts.get("greedy"):
        assert job.judge is not None
        judge = job.judge

        def score_of(chosen: Sequence[int]) -> float:
            return judge(averaged([models[j] for j in chosen]))[PREFERENCE]

        taken = greedy([score_of([j]) for j in range(len(models))], score_of)
    made = averaged([models[j] for j in taken])
    members = trained.models if job.given is None else ()
    return replace(trained, models=(made,), facts={"averaged": list(taken)}, members=members)


def _alike(models: Sequence[Ensemble]) -> Sequence[Ensemble]:
    """Returns models that are to be averaged; warns of heads that did not start alike, whose mean means little."""
    cosine = likeness(models)
    if cosine < APART:
        logger.warning(
            "the heads of these models have a cosine of %.2f: they did not start alike, and the mean of their weights "
            "may be worth little; expected models fine-tuned from one start, head included",
            cosine,
        )
    return models


def _path(job: Fit) -> Fitted:
    """Averages the weights after the last epochs of one training; each epoch's are kept as it ends."""
    model = job.make(1, job.schedule.seed)
    judge_before = job.judge

    def judge(trained: torch.nn.Module) -> Mapping[str, float]:
        done = len(_kept(job.state))
        if first():
            _keep(trained, job.state / f"epoch-{done:04d}.safetensors")
        together()
        return {} if judge_before is None else judge_before(trained)

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
    sealed = read_sealed(file)
    if sealed is None:
        raise PlaitError(f"{file} is damaged: start again without resume")
    return sealed[0]


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
            branch = replace(job, schedule=replace(part, seed=seed + number + 1), best=None, judge=None)
            log = _stage(branch, model, f"round-{number}-{j}")
            losses += [{"round": float(number + 1), "member": float(j), **entry} for entry in losses_of(log)]
            states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        model.load_state_dict(mean_state(states))
    return Fitted((model,), tuple(epochs), tuple(losses))


def _stage(job: Fit, model: Ensemble, name: str) -> list[dict[str, float]]:
    """Trains one part of a longer training, unless a run that was stopped had finished it; returns its log."""
    stage = replace(job, state=job.state / name)
    done = job.state / f"{name}.safetensors"
    if job.resume and (sealed := read_sealed(done)) is not None:
        model.load_state_dict(sealed[0])
        shutil.rmtree(stage.state, ignore_errors=True)
        return list(sealed[1])
    with seeded(job.schedule.seed):
        log = run(stage, model)
    if first():
        _keep(model, done, log)
        shutil.rmtree(stage.state, ignore_errors=True)
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
