"""Training of the student: a registered objective on the training loop; the epoch kept that agrees best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plait.amalgamation import adapters
from plait.amalgamation.objective import ObjectiveEntry
from plait.encoders.modes import unwrapped
from plait.encoders.replay import encoder_of, read_by_head
from plait.errors import SourceError
from plait.training.corpus import Corpus
from plait.training.trainer import Batch, Evaluator, Schedule, train


@dataclass(frozen=True)
class StudentModel:
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
class TrainingResult:
    """How a training went: what the judge said after each epoch, and texts times forward passes."""

    epochs: list[dict[str, float]]
    forwards: float


def train_student(
    pupil: StudentModel,
    state: Path,
    *,
    schedule: Schedule,
    held: npt.NDArray[np.int64],
    judge: Evaluator | None = None,
    best: str = "agreement",
    resume: bool = False,
) -> TrainingResult:
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
            scores = dict((judge or by_agreement)(network))
            # What labelled texts cost is no cost of the texts that teach.
            meter.rows = before if judge is not None else meter.rows
            return scores

        by_agreement = partial(agreement, corpus=pupil.corpus.choose(held), batch_size=schedule.batch_size)
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
    return TrainingResult(marked(epochs_of(log), best), meter.forwards)


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
    by_row: dict[int, Tensor] = {}
    with torch.inference_mode():
        for rows in corpus.batches(batch_size):
            inputs = corpus.inputs([corpus[row] for row in rows])
            logits = model(**{name: value.to(device) for name, value in inputs.items()}).logits
            by_row.update(zip(rows, logits.float().softmax(-1).cpu(), strict=True))
    for module, mode in modes.items():
        module.training = mode
    return torch.stack([by_row[row] for row in range(len(corpus))])


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


def marked(epochs: list[dict[str, float]], best: str) -> list[dict[str, float]]:
    """Returns the epochs with a mark on the one whose weights are kept: the first with the best score."""
    if not epochs:
        return epochs
    top = max(range(len(epochs)), key=lambda at: epochs[at].get(best, float("-inf")))
    return [{**epoch, "kept": True} if at == top else epoch for at, epoch in enumerate(epochs)]


INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What the student reads; all else in a batch is for the objective."""

ADAPTERS = "plait_adapters"
"""Where the adapters hang while the student is trained: its optimiser, precision and checkpoints serve them too."""


@dataclass(frozen=True)
class Distillation:
    """An objective on batches of texts with what the teachers said of them.

    Attributes:
        entry: The registered objective.
        columns: Per teacher the positions of its labels in the union.
        classifier: The path of the student's Linear whose rows are the labels.
        options: The objective's own options.
    """

    entry: ObjectiveEntry
    columns: Sequence[Sequence[int]]
    classifier: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Returns the objective's terms."""
        inputs = {name: tensor for name, tensor in batch.items() if name in INPUTS}
        inputs_of_terms: dict[str, Any] = {
            **self._student(model, inputs),
            "target": batch.get("target"),
            "weight": batch.get("weight"),
            "columns": [torch.tensor(places) for places in self.columns],
            "adapters": getattr(unwrapped(model), ADAPTERS, None),
            **{name: _numbered(batch, name) for name in self.entry.inputs if name.startswith("teacher_")},
        }
        return self.entry.function(**{name: inputs_of_terms[name] for name in self.entry.inputs}, **self.options)

    def _student(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the student's logits, and its features and layers where the objective wants them."""
        layers = "student_layers" in self.entry.inputs
        with _watched(unwrapped(model).get_submodule(self.classifier)) as seen:
            output = model(**inputs, output_hidden_states=layers)
        outputs = {
            "student_logits": output.logits,
            "student_features": read_by_head(seen[0], inputs["attention_mask"]),
        }
        if layers:
            outputs["student_layers"] = pooled(output.hidden_states, inputs["attention_mask"])
        return outputs


def pooled(hidden_states: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Returns the mean over the tokens of the embeddings and each layer's output, [b, L + 1, d]."""
    weights = mask.to(hidden_states[0].dtype)
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.stack([torch.einsum("btd,bt->bd", states, weights) for states in hidden_states], 1)


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[Tensor]]:
    """Yields a list that receives what the module reads."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _numbered(batch: Batch, name: str) -> list[Tensor]:
    """Returns the entries `name.0`, `name.1`, … of a batch."""
    entries: list[Tensor] = []
    while f"{name}.{len(entries)}" in batch:
        entries.append(batch[f"{name}.{len(entries)}"].float())
    return entries


@contextmanager
def adapted(model: nn.Module, module: nn.Module | None) -> Iterator[None]:
    """Hangs adapters into a student and takes them out again."""
    if module is not None:
        model.add_module(ADAPTERS, module)
    try:
        yield
    finally:
        if module is not None:
            delattr(model, ADAPTERS)


def make_adapters(
    entry: ObjectiveEntry, model: Any, corpus_tables: Mapping[str, Tensor], classifier: str
) -> nn.Module | None:
    """Returns the adapters that an objective trains, sized for this student and these teachers, or None."""
    if entry.facts.get("adapters") is None:
        return None
    kind = "teacher_layers" if entry.facts["keep"] == "layers" else "teacher_features"
    widths = [table.shape[-1] for name, table in corpus_tables.items() if name.startswith(f"{kind}.")]
    hidden: int = model.config.hidden_size
    width = hidden if kind == "teacher_layers" else model.get_submodule(classifier).in_features
    return adapters.build(entry.name, width, model.config.num_hidden_layers, widths)


def classifier_path(model: Any) -> str:
    """Returns the path of the Linear whose rows are the labels: the head's last one as wide as the labels are many."""
    count = model.config.num_labels
    body = {id(module) for module in model.base_model.modules()} if model.base_model is not model else set()
    paths = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == count and id(module) not in body
    ]
    if not paths:
        raise SourceError(f"{type(model).__name__}: no Linear with {count} outputs in its head")
    path: str = paths[-1]
    return path
