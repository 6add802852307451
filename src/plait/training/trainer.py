"""The one training loop: any objective (named scalar terms, summed and logged) on transformers.Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from plait import progress
from plait.checkpoints.sealed import seal, sealed_facts
from plait.data.labels import IGNORED
from plait.errors import DataError, RecipeError, first_line, listed
from plait.training.heads import quiet
from plait.training.state import first, forget, last_state, processes, together

Batch = Mapping[str, Tensor]
SEEDS = 2**32 - 1
"""The largest seed that every generator takes."""
UNLISTED = ("azure_ml", "flyte")
"""Trackers that transformers may leave out where it lists those that are installed."""


@runtime_checkable
class Objective(Protocol):
    """What training minimises: the sum of the named terms, each of them logged."""

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Returns the scalar terms of one batch."""


@runtime_checkable
class TrainingData(Protocol):
    """Tokenised examples: `plait.data.Encoded`, or anything that also brings what an objective needs."""

    @property
    def lengths(self) -> Sequence[int]:
        """Returns the number of tokens of each example."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def collate(self, features: Sequence[Any]) -> dict[str, Tensor]:
        """Returns some of the examples as one batch."""


@runtime_checkable
class Counter(Protocol):
    """What a training adds to as it goes; a resumed one goes on with what stood in the state that was saved."""

    rows: int


Evaluator = Callable[[torch.nn.Module], Mapping[str, float]]
"""Scores a model after each epoch; the first score decides which epoch is kept, the higher the better."""


def check_tracker(name: str) -> None:
    """Raises `RecipeError` where transformers does not know a tracker, or its package is not installed."""
    try:
        get_reporting_integration_callbacks(name)
    except ValueError as error:
        raise RecipeError(f"report_to is {name!r}: {first_line(error)}") from error
    here = get_available_reporting_integrations()
    if name not in ("none", "all", *UNLISTED, *here):
        raise RecipeError(
            f"report_to is {name!r}, which is not installed: install it, or choose {', '.join((*here, 'none'))}"
        )


@dataclass(frozen=True)
class TaskLoss:
    """The loss of the model's own head for the labels in the batch."""

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Returns the one term `task`."""
        return {"task": model(**batch).loss}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: linear warm-up over the share `warmup` of the steps, then linear decay.

    A step sees `batch_size` examples however they are divided: over processes, and into `accumulate` parts one after
    another, for which less memory is needed.
    """

    epochs: float = 3.0
    learning_rate: float = 5e-5
    batch_size: int = 16
    warmup: float = 0.1
    weight_decay: float = 0.01
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    report_to: str = "none"
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Checks the seed and the tracker.

        Raises:
            RecipeError: a seed beyond what generators take, or a tracker that is unknown or not installed.
        """
        if not 0 <= self.seed <= SEEDS:
            raise RecipeError(f"seed is {self.seed}; expected 0 to {SEEDS}")
        check_tracker(self.report_to)

    @property
    def part(self) -> int:
        """Returns the examples that one process sees at once.

        Raises:
            RecipeError: When the batch cannot be divided.
        """
        parts = self.accumulate * processes()
        if self.batch_size % parts:
            raise RecipeError(
                f"batch_size is {self.batch_size}; expected a multiple of {parts} (accumulate {self.accumulate} in "
                f"{processes()} processes)"
            )
        return self.batch_size // parts


class ObjectiveTrainer(Trainer):
    """transformers.Trainer that minimises an `Objective` and logs each of its terms."""

    def __init__(
        self, objective: Objective, sampler: Sampler, judge: Evaluator | None = None, **kwargs: Any
    ) -> None:
        """Makes a trainer of `objective`, judged by `score_texts_by_gate`; the rest goes to transformers.Trainer."""
        # The Trainer wants a data set to judge on; ours are the judge's own.
        super().__init__(eval_dataset=None if judge is None else [], **kwargs)
        self.objective: Objective = objective
        self.sampler = sampler
        self.judge = judge
        self.counter: Counter | None = None
        self.terms: dict[str, list[Tensor]] = {}
        self.shares: list[Tensor] = []
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:  # noqa: ARG002 (the Trainer's signature)
        return self.sampler

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Returns the parts of a step; each one's mean will count by its share of what the step has."""
        parts, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.tensor([_counted(part) for part in parts], device=device)
        total = self.accelerator.reduce(counts.sum(), "sum")
        # The Trainer takes the plain mean over parts, and over processes.
        self.shares = list(counts * len(parts) * self.accelerator.num_processes / total.clamp(min=1))
        return parts, None

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002 (the Trainer's signature)
    ) -> Any:
        """Returns the sum of the objective's terms."""
        terms = self.objective(model, inputs)
        for name, term in terms.items():
            self.terms.setdefault(name, []).append(term.detach())
        loss = torch.stack(list(terms.values())).sum() * self.shares.pop(0)
        return (loss, {}) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Returns what the judge says of the model, logged and shown to the callbacks that keep the best epoch."""
        assert self.judge is not None
        assert self.model is not None
        found = {f"eval_{name}": value for name, value in self.judge(self.model).items()}
        super().log({**found, "epoch": self.state.epoch or 0.0})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves a state, seals it when every process has, and only then removes those that it stands for."""
        super()._save_checkpoint(model, trial)
        together()
        if first():
            folder = Path(str(self.args.output_dir))
            state = folder / f"checkpoint-{self.state.global_step}"
            seal(state, {} if self.counter is None else {"rows": self.counter.rows})
            best = self.state.best_model_checkpoint
            forget(folder, {state.name, Path(best or state).name})
        together()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each term's mean since the last log; stops where one is not a number any more."""
        means = {f"loss/{name}": float(torch.stack(seen).mean()) for name, seen in self.terms.items()}
        self.terms.clear()
        if bad := [f"{name} {value}" for name, value in means.items() if not math.isfinite(value)]:
            raise DataError(
                f"training diverged before step {self.state.global_step}: {listed(bad)}; "
                "lower learning_rate, and look for extreme labels"
            )
        super().log({**logs, **means}, start_time)


def _counted(part: Batch) -> int:
    """Returns over how much a part's loss is a mean: labelled tokens where labels are per token, else examples."""
    labels = part.get("labels")
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        return int((labels != IGNORED).sum())
    return len(next(iter(part.values())))


class Ticks(TrainerCallback):
    """One tick of our progress bar per optimizer step."""

    def __init__(self, tick: progress.Tick) -> None:
        """Keeps the tick function."""
        self.tick = tick

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Ticks."""
        self.tick(1)


class StopWhenLevel(TrainerCallback):
    """Ends training after an epoch in which no score is better than the best before it."""

    def __init__(self, scores: Sequence[str]) -> None:
        """Keeps the names of scores, the higher the better."""
        self.scores = [f"eval_{name}" for name in scores]

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Looks at the scores so far, which a resumed run has as well."""
        control.should_training_stop = control.should_training_stop or self.level(state.log_history)

    def level(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Says whether the last epoch has raised none of the scores."""
        judged = [[entry[name] for name in self.scores] for entry in history if self.scores[0] in entry]
        *before, last = judged or [[]]
        return bool(before) and all(now <= max(past) for now, *past in zip(last, *before, strict=True))


def train(
    model: PreTrainedModel,
    encoded: TrainingData,
    folder: Path,
    *,
    objective: Objective | None = None,
    schedule: Schedule | None = None,
    judge: Evaluator | None = None,
    best: str | None = None,
    checkpoints: bool = False,
    resume: bool = False,
    stop_when_level: Sequence[str] = (),
    counter: Counter | None = None,
) -> list[dict[str, float]]:
    """Trains `model` in place and returns the log.

    Args:
        model: Any model the objective can call.
        encoded: Tokenised examples with whatever the objective needs.
        folder: Where the Trainer keeps its state.
        objective: The head's own loss by default.
        schedule: How long and how fast.
        judge: Scores the model after each epoch; its scores stand in the log as `eval_…`.
        best: The judge's score, the higher the better, whose best epoch is given back instead of the last one.
        checkpoints: Save the Trainer's state after each epoch.
        resume: Go on from the last saved state in `folder`, where there is one.
        stop_when_level: End after an epoch that raises none of these scores.
        counter: Its rows are saved with each state, and set to those of the state from which training goes on.
    """
    plan = schedule or Schedule()
    sampler = Sampler(encoded.lengths, plan.batch_size, plan.seed)
    steps = int(np.ceil(-(-len(encoded) // plan.batch_size) * plan.epochs))
    stop = StopWhenLevel(stop_when_level) if stop_when_level else None
    with progress.task("training", steps) as tick, _own_config(model):
        trainer = ObjectiveTrainer(
            objective or TaskLoss(),
            sampler,
            judge,
            model=model,
            args=_arguments(plan, folder, steps, checkpoints, judge is not None, best),
            train_dataset=encoded,
            data_collator=encoded.collate,
            callbacks=[Ticks(tick), *([stop] if stop else [])],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.counter = counter
        _go_through(trainer, last_state(folder) if resume else None, stop)
        # Mixed precision puts a forward of its own on the model; the caller gets an ordinary one back.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        vars(model).pop("forward", None)
    # What a state was read from has another order than what was never written.
    return [dict(sorted(entry.items())) for entry in trainer.state.log_history]


@contextmanager
def _own_config(model: Any) -> Iterator[None]:
    """Gives back what the Trainer turns off in a model's configuration: what is written is not to tell who trained."""
    config = vars(getattr(model, "config", None) or SimpleNamespace())
    before = config.get("use_cache", config)
    try:
        yield
    finally:
        config.pop("use_cache", None)
        if before is not config:
            config["use_cache"] = before


def _go_through(trainer: ObjectiveTrainer, last: str | None, stop: StopWhenLevel | None) -> None:
    """Trains to the end, from a state that was saved or from the beginning."""
    if trainer.counter is not None:
        trainer.counter.rows = int(sealed_facts(Path(last)).get("rows", 0)) if last else 0
    with quiet():
        if last and stop:
            trainer.state = TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))
            if stop.level(trainer.state.log_history) and trainer.state.best_model_checkpoint:
                trainer._load_best_model()  # it had come to its end
                return
        trainer.train(resume_from_checkpoint=last)


def _arguments(  # noqa: PLR0917 - what the Trainer is told, once
    plan: Schedule, folder: Path, steps: int, checkpoints: bool, judged: bool, best: str | None
) -> TrainingArguments:
    told = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=plan.epochs,
        learning_rate=plan.learning_rate,
        per_device_train_batch_size=plan.part,
        gradient_accumulation_steps=plan.accumulate,
        warmup_steps=round(plan.warmup * steps),
        lr_scheduler_type="linear",
        weight_decay=plan.weight_decay,
        seed=plan.seed,
        data_seed=plan.seed,
        bf16=plan.precision == "bfloat16",
        use_cpu=not torch.accelerator.is_available(),
        report_to=plan.report_to,
        logging_strategy="steps",
        logging_steps=max(1, steps // 20),
        eval_strategy="epoch" if judged else "no",
        save_strategy="epoch" if checkpoints or best else "no",
        load_best_model_at_end=best is not None,
        metric_for_best_model=best,
        greater_is_better=None if best is None else True,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    # One process, one device: the Trainer would spread a larger batch over all it sees.
    told._n_gpu = min(told.n_gpu, 1)
    return told


GROUPED = 50
"""Batches' worth of shuffled examples that are sorted by length together."""


class Sampler(torch.utils.data.Sampler[int]):
    """Shuffled examples, sorted by length within groups, so that little is padded.

    The order depends on nothing but the seed and the epoch: a resumed run repeats the uninterrupted one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """Prepares the order of epoch 0."""
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order comes next; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random_order = np.random.default_rng((self.seed, self.epoch))
        rows = random_order.permutation(len(self.lengths)).tolist()
        size = self.batch_size * GROUPED
        groups = [
            sorted(rows[i : i + size], key=lambda row: -self.lengths[row]) for i in range(0, len(rows), size)
        ]
        cut = [g[i : i + self.batch_size] for g in groups for i in range(0, len(g), self.batch_size)]
        # A short batch stays last: the loader would cut all later batches elsewhere.
        full, short = (
            [b for b in cut if len(b) == self.batch_size],
            [b for b in cut if len(b) < self.batch_size],
        )
        for batch in [*(full[i] for i in random_order.permutation(len(full))), *short]:
            yield from batch
