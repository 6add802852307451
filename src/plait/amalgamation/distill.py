"""A registered objective as the training loop wants it: it runs the student and hands each input over by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plait.amalgamation import adapters
from plait.amalgamation.objective import ObjectiveEntry
from plait.errors import SourceError
from plait.statistics.posteriors.layers import read_by_head
from plait.training.loop import Batch

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
        given: dict[str, Any] = {
            **self._student(model, inputs),
            "target": batch.get("target"),
            "weight": batch.get("weight"),
            "columns": [torch.tensor(places) for places in self.columns],
            "adapters": getattr(_inner(model), ADAPTERS, None),
            **{name: _numbered(batch, name) for name in self.entry.inputs if name.startswith("teacher_")},
        }
        return self.entry.function(**{name: given[name] for name in self.entry.inputs}, **self.options)

    def _student(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the student's logits, and its features and layers where the objective wants them."""
        layers = "student_layers" in self.entry.inputs
        with _watched(_inner(model).get_submodule(self.classifier)) as seen:
            output = model(**inputs, output_hidden_states=layers)
        found = {
            "student_logits": output.logits,
            "student_features": read_by_head(seen[0], inputs["attention_mask"]),
        }
        if layers:
            found["student_layers"] = pooled(output.hidden_states, inputs["attention_mask"])
        return found


def _inner(model: nn.Module) -> nn.Module:
    """Returns the student itself: with several processes it comes wrapped."""
    wrapped = getattr(model, "module", None)
    return wrapped if isinstance(wrapped, nn.Module) else model


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
    found: list[Tensor] = []
    while f"{name}.{len(found)}" in batch:
        found.append(batch[f"{name}.{len(found)}"].float())
    return found


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
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == count and id(module) not in body
    ]
    if not found:
        raise SourceError(f"{type(model).__name__}: no Linear with {count} outputs in its head")
    path: str = found[-1]
    return path
