"""The student: trained on a lesson, the epoch kept that agrees best with texts held back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from plait.amalgamation.corpus import Corpus
from plait.amalgamation.distill import INPUTS, Distillation, adapted, make_adapters
from plait.statistics.posteriors.layers import encoder_of
from plait.training.loop import Judge, Schedule, train


@dataclass(frozen=True)
class Pupil:
    """A model about to be taught.

    Attributes:
        model: An encoder with a head over the union.
        corpus: The texts as it reads them, with the tables of its objective.
        objective: What it minimises.
    """

    model: PreTrainedModel
    corpus: Corpus
    objective: Distillation


@dataclass(frozen=True)
class Learned:
    """How a training went: what the judge said after each epoch, and texts times forward passes."""

    epochs: list[dict[str, float]]
    forwards: float


def teach(
    pupil: Pupil,
    state: Path,
    *,
    schedule: Schedule,
    held: npt.NDArray[np.int64],
    judge: Judge | None = None,
    best: str = "agreement",
    resume: bool = False,
) -> Learned:
    """Trains the pupil in place and returns how it went.

    Args:
        pupil: What to train, and on what.
        state: Where the state of the training is kept.
        schedule: How long and how fast.
        held: Texts held back; agreement with their targets decides which epoch is kept, unless there is a judge.
        judge: Scores with labels instead, where labels are given.
        best: The score that decides.
        resume: Go on from the state that a stopped run left.
    """
    entry, model = pupil.objective.entry, pupil.model
    extra = make_adapters(entry, model, pupil.corpus.tables, pupil.objective.classifier)
    with adapted(model, extra), metered(model) as meter:

        def judged(network: torch.nn.Module) -> dict[str, float]:
            before = meter.rows
            found = dict((judge or own)(network))
            # What labelled texts cost is no cost of the texts that teach.
            meter.rows = before if judge is not None else meter.rows
            return found

        own = partial(agreement, corpus=pupil.corpus.choose(held), batch_size=schedule.batch_size)
        judging = judge is not None or len(held) > 0
        log = train(
            model,
            pupil.corpus,
            state,
            objective=pupil.objective,
            schedule=schedule,
            judge=judged if judging else None,
            best=best if judging else None,
            checkpoints=True,
            resume=resume,
            counter=meter,
        )
    return Learned(epochs_of(log), meter.forwards)


class Meter:
    """Counts texts through the layers of an encoder; with gradients they count three times, there and back."""

    def __init__(self, depth: int) -> None:
        """Begins at nothing."""
        self.depth, self.rows = depth, 0

    @property
    def forwards(self) -> float:
        """Returns how many texts could have gone through the whole encoder once."""
        return self.rows / self.depth

    def __call__(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Counts one application of one layer."""
        states = args[0] if args else kwargs["hidden_states"]
        self.rows += len(states) * (3 if torch.is_grad_enabled() else 1)


@contextmanager
def metered(model: PreTrainedModel) -> Iterator[Meter]:
    """Yields a meter of the model's encoder."""
    encoder = encoder_of(model)
    meter = Meter(1 if encoder is None else encoder.depth)
    handles = [
        module.register_forward_pre_hook(meter, with_kwargs=True)
        for module in (() if encoder is None else encoder.modules)
    ]
    try:
        yield meter
    finally:
        for handle in handles:
            handle.remove()


def answers(model: Any, corpus: Corpus, batch_size: int) -> Tensor:
    """Returns the model's distribution over the labels on each example, in their order, [n, C]."""
    device, modes = next(model.parameters()).device, {m: m.training for m in model.modules()}
    model.eval()
    found: dict[int, Tensor] = {}
    with torch.inference_mode():
        for rows in corpus.batches(batch_size):
            inputs = corpus.inputs([corpus[row] for row in rows])
            logits = model(**{name: value.to(device) for name, value in inputs.items()}).logits
            found.update(zip(rows, logits.float().softmax(-1).cpu(), strict=True))
    for module, mode in modes.items():
        module.training = mode
    return torch.stack([found[row] for row in range(len(corpus))])


def agreement(model: Any, corpus: Corpus, batch_size: int) -> dict[str, float]:
    """Returns how often the model's label is the target's, and KL(target ‖ model), on texts held back."""
    device, modes = next(model.parameters()).device, {m: m.training for m in model.modules()}
    model.eval()
    equal = divergence = 0.0
    with torch.inference_mode():
        for rows in corpus.batches(batch_size):
            batch = corpus.collate([corpus[row] for row in rows])
            inputs = {name: batch[name].to(device) for name in INPUTS if name in batch}
            logs = model(**inputs).logits.float().log_softmax(-1).cpu()
            target = batch["target"]
            equal += float((logs.argmax(-1) == target.argmax(-1)).sum())
            divergence += float((torch.special.entr(target).neg() - target * logs).sum())
    for module, mode in modes.items():
        module.training = mode
    count = max(len(corpus), 1)
    return {"agreement": equal / count, "divergence": divergence / count}


def epochs_of(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """Returns what the judge said after each epoch."""
    return [
        {name.removeprefix("eval_"): round(value, 6) for name, value in entry.items() if name != "step"}
        for entry in log
        if any(name.startswith("eval_") for name in entry)
    ]
