"""What each candidate answers on the rows to test on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait.amalgamation.label_space import LabelSpace
from plait.amalgamation.targets import concat
from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint
from plait.checkpoints.tokenizers import reading_up_to
from plait.comparison.held_out import TestSet
from plait.comparison.material import Material
from plait.data import Examples, align_labels, encode
from plait.ensembles.answers import saved_logits
from plait.ensembles.saved import SavedEnsemble
from plait.evaluation import outcome_of, outcome_scores, predict_logits
from plait.evaluation.outcome import Outcome
from plait.evaluation.predict import predict_encoded
from plait.merging.merged import Merged

Outcomes = dict[str, Outcome]


@dataclass(frozen=True)
class Reading:
    """How texts are read: how many at a time, and how much of each."""

    batch_size: int = 32
    max_length: int | None = None

    def outcome(self, model: Any, tokenizer: Any, rows: Examples) -> Outcome:
        """Returns what a model's head answers on rows."""
        return outcome_of(model, tokenizer, rows, batch_size=self.batch_size, max_length=self.max_length)

    def logits(self, model: Any, tokenizer: Any, rows: Examples) -> list[Tensor]:
        """Returns a model's logits on rows, one tensor each."""
        with reading_up_to(tokenizer, self.max_length):
            return predict_logits(
                model, tokenizer, rows, batch_size=self.batch_size, max_length=self.max_length
            )


    def passed(self, model: Any, tokenizer: Any, rows: Examples) -> None:
        """Passes rows through a model of any head, for the time that it takes."""
        with reading_up_to(tokenizer, self.max_length):
            encoded = encode(rows, tokenizer, max_length=self.max_length, config=model.config, labels=False)
            predict_encoded(model, encoded, batch_size=self.batch_size)


@dataclass(frozen=True)
class Sources:
    """The sources as they are; each is opened once, and what it has answered is kept."""

    material: Material
    reading: Reading
    _known: dict[tuple[int, str], Outcome] = field(default_factory=dict)

    def outcomes(self, wanted: Mapping[str, Sequence[int]]) -> None:
        """Answers tests by the sources at these places, one source in memory after another."""
        for place, source in enumerate(self.material.sources):
            due = [t for t in self.material.tests if place in wanted[t.name] and (place, t.name) not in self._known]
            if due:
                model, tokenizer = source.model(), source.tokenizer()
            for test in due:
                rows = of_source(source, test)
                self._known[place, test.name] = self.reading.outcome(model, tokenizer, rows)

    def apart(self) -> Outcomes:
        """Returns what the sources answer apart: the best of those that know the task, or all side by side."""
        self.outcomes({test.name: test.members for test in self.material.tests})
        return {test.name: self._apart(test) for test in self.material.tests}

    def _apart(self, test: TestSet) -> Outcome:
        every = [self._known[place, test.name] for place in test.members]
        if test.across:
            assert self.material.space is not None
            return side_by_side([stacked(one) for one in every], self.material.space, test)
        return max(every, key=lambda one: outcome_scores(one)[test.metric])

    def together(self) -> Outcomes:
        """Returns what all sources answer as members of an ensemble: the mean of their logits."""
        tests, everyone = self.material.tests, range(len(self.material.sources))
        self.outcomes({test.name: everyone for test in tests})
        return {test.name: mean_of(self.members(test), test) for test in tests}

    def members(self, test: TestSet) -> list[Tensor]:
        """Returns per row the logits of all sources, [M, C] or [M, words, C], labels in the order of the test."""
        everyone = [in_order(self._known[place, test.name], test) for place in range(len(self.material.sources))]
        return [torch.stack(rows) for rows in zip(*everyone, strict=True)]


def of_source(source: Checkpoint, test: TestSet) -> Examples:
    """Returns the rows for one source; for rows across labels, the texts with a label that the source has."""
    if not test.across:
        return test.rows
    return replace(test.rows, labels=(0,) * len(test.rows), label_names=source.labels)


def stacked(outcome: Outcome) -> Tensor:
    """Returns logits [N, C]."""
    return torch.stack(list(outcome.logits or ())).float()


def in_order(outcome: Outcome, test: TestSet) -> list[Tensor]:
    """Returns logits with labels in the order of the test."""
    rows = [row.float() for row in outcome.logits or ()]
    if test.labels is None or outcome.names is None or outcome.names == test.labels:
        return rows
    columns = [outcome.names.index(name) for name in test.labels]
    return [row[..., columns] for row in rows]


def mean_of(logits: Sequence[Tensor], test: TestSet) -> Outcome:
    """Returns the answers of members together."""
    return Outcome(test.rows, [row.mean(0) for row in logits], names=test.labels, problem=test.problem)  # type: ignore[arg-type]


def side_by_side(logits: Sequence[Tensor], space: LabelSpace, test: TestSet) -> Outcome:
    """Returns the answers of several heads over all labels: the softmax over their logits side by side."""
    return Outcome(test.rows, list(concat(logits, space).log()), names=test.labels, problem=test.problem)  # type: ignore[arg-type]


class EveryHead(nn.Module):
    """A merged checkpoint seen as one model: its heads' logits side by side from one encoder pass."""

    def __init__(self, merged: Merged) -> None:
        """Takes the encoder and its configuration."""
        super().__init__()
        self.encoder, self.config, self._merged = merged.encoder, merged.encoder.config, [merged]
        self.tasks = nn.ModuleList(merged.task(name) for name in merged.tasks)  # so that heads move with the encoder

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Returns the logits."""
        heads = self._merged[0].replayed(self.encoder(**inputs))
        return {"logits": torch.cat([head(**inputs).logits for head in heads.values()], -1)}


def of_merge(folder: Path, material: Material, reading: Reading) -> Outcomes:
    """Returns what a merged checkpoint answers: by the task's head, or by all heads side by side."""
    merged = Merged(folder)
    return {
        test.name: across_heads(merged, test, material, reading)
        if test.task is None
        else reading.outcome(merged.task(test.task), merged.tokenizer_of(test.task), test.rows)
        for test in material.tests
    }


def across_heads(merged: Merged, test: TestSet, material: Material, reading: Reading) -> Outcome:
    """Returns what all heads of a merged checkpoint answer side by side."""
    assert material.space is not None
    rows = torch.stack(reading.logits(EveryHead(merged), merged.tokenizer, test.rows.unlabelled()))
    sizes = [len(own) for own in material.space.own]
    return side_by_side(rows.split(sizes, -1), material.space, test)


def of_ensemble(folder: Path, material: Material, reading: Reading) -> Outcomes:
    """Returns what an ensemble answers, or the ordinary model that one has become."""
    saved = SavedEnsemble(folder)
    if saved.plain:
        model, tokenizer = saved.checkpoint.model(), saved.checkpoint.tokenizer()
        return {test.name: reading.outcome(model, tokenizer, test.rows) for test in material.tests}
    ask = partial(saved_logits, saved, batch_size=reading.batch_size, max_length=reading.max_length)
    kind: Any = saved.kind
    found = {}
    for test in material.tests:
        rows = align_labels(test.rows, saved.labels, kind=kind, problem_type=saved.problem)
        logits = [row.mean(0) for row in ask(rows)]
        found[test.name] = Outcome(rows, logits, names=saved.labels, problem=saved.problem)
    return found


def of_student(folder: Path, material: Material, reading: Reading) -> Outcomes:
    """Returns what a student answers: among the labels of the task where it is known, else among all."""
    checkpoint = open_checkpoint(folder)
    model, tokenizer, names = checkpoint.model(), checkpoint.tokenizer(), list(checkpoint.labels or ())
    found = {}
    for test in material.tests:
        logits = torch.stack(reading.logits(model, tokenizer, test.rows.unlabelled()))
        columns = [names.index(name) for name in labels_in(material, test)]
        found[test.name] = Outcome(test.rows, list(logits[:, columns]), names=test.labels, problem=test.problem)  # type: ignore[arg-type]
    return found


def labels_in(material: Material, test: TestSet) -> list[str]:
    """Returns what the student of all sources calls the labels of a test."""
    space = material.space
    assert space is not None
    if test.across:
        return list(space.names)
    return [space.names[at] for at in space.columns[test.members[0]]]


OF_WAY = {"merge": of_merge, "ensemble": of_ensemble, "amalgamate": of_student}
