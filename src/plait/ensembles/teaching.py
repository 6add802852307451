"""The objective of a model that others teach, and the tables of what they say, text by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plait.data import Examples, ProblemType
from plait.data.labels import IGNORED
from plait.ensembles.answers import task_loss
from plait.ensembles.method import Choice, Terms
from plait.ensembles.outputs import SINGLE, at_least_float32
from plait.ensembles.training import INPUTS, Noise, unwrapped
from plait.errors import MergeError, listed
from plait.label_names import placeholders

UNPERTURBED = Noise("none")


@dataclass(frozen=True)
class Teaching:
    """The objective of the one training loop for a student, or for the heads of a hydra.

    Attributes:
        choice: The method.
        problem: What the logits mean.
        noise: None: teachers tell members apart.
    """

    choice: Choice
    problem: ProblemType = SINGLE
    noise: Noise = UNPERTURBED

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Terms:
        """Returns the terms of one batch; all heads see one pass of the encoder."""
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        shared: Any = unwrapped(model).config.shared_layers  # type: ignore[union-attr]
        found = model(**inputs, output_members=True, replicate_at=int(shared)).member_logits
        logits, labelled, labels = at_least_float32(found), batch["labelled"], batch["labels"]
        known = labelled.nonzero().flatten()
        task = task_loss(logits[:, known], labels[known], self.problem) if len(known) else logits.new_zeros(())
        teachers = batch["teachers"].movedim(0, 1)
        return self.choice.terms(task, logits, labels, self.problem, None, teachers, labelled)


def tables(
    examples: Examples, labelled: int, teachers: Sequence[Tensor], problem: ProblemType, classes: int
) -> dict[str, Tensor]:
    """Returns a row per text of its label, whether it has one, and what each teacher says: [N, K, C].

    Args:
        examples: The texts; the first ones have labels, as the head counts them.
        labelled: How many of them do.
        teachers: By teacher, its logits [N, C].
        problem: What they mean.
        classes: C.
    """
    known, rest = list((examples.labels or ())[:labelled]), len(examples) - labelled
    if problem == SINGLE:
        labels = torch.tensor([*known, *[IGNORED] * rest], dtype=torch.long)
    else:
        rows = [list(v) if isinstance(v, tuple) else [v] for v in known]
        wide = torch.tensor([*rows, *[[0.0] * classes] * rest], dtype=torch.float32).view(-1, classes)
        labels = wide.squeeze(-1) if problem == "regression" else wide
    return {
        "labels": labels,
        "labelled": torch.arange(len(examples)) < labelled,
        "teachers": torch.stack([at_least_float32(table) for table in teachers], 1),
    }


def columns(name: str, labels: Sequence[str] | None, wanted: Sequence[str] | None) -> list[int]:
    """Returns where a teacher has each label of the student: by name, whatever the casing; without names by place.

    Raises:
        MergeError: it lacks one, or has others.
    """
    if labels is None or wanted is None:
        return [0]
    if len(labels) == len(wanted) and (placeholders(labels) or placeholders(wanted)):
        return list(range(len(wanted)))
    exact = {label: at for at, label in enumerate(labels)}
    folded: dict[str, list[int]] = {}
    for at, label in enumerate(labels):
        folded.setdefault(label.casefold(), []).append(at)
    found = {w: exact.get(w, next(iter(folded.get(w.casefold(), ())), None)) for w in wanted}
    lacking = [w for w, at in found.items() if at is None]
    strange = [label for at, label in enumerate(labels) if at not in found.values()]
    if lacking or strange:
        said = [f"lacks {listed(lacking, 5)}"] if lacking else []
        said += [f"has {listed(strange, 5)} besides"] if strange else []
        raise MergeError(
            f"{name} {' and '.join(said)}; expected a model of the labels {listed(wanted, 20)}, in any order"
        )
    return [at for at in found.values() if at is not None]
