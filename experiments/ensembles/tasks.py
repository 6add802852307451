"""The tasks: which texts teach, which decide the epoch and which test, all by the parquet files and a seed alone.

A seed permutes a task's training texts; the first decide which epoch is kept, the next teach. The test texts are the
same for every seed: the test split, or the validation split where the test split has no labels; neither decides
anything.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from plait.data import Examples, read_examples

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = Path(os.environ.get("PLAIT_DATA", ROOT.parent / "shared" / "datasets"))
WORK = ROOT / "work-files" / "ensembles"
RESULTS = HERE / "results"
SEEDS = (0, 1, 2)
UNLABELLED = 3000  # texts of the training split that nothing else uses, without their labels
STRANGE = "oos"  # the label of texts that belong to no class


@dataclass(frozen=True)
class Task:
    """How much of a task is used, and how long a model of it is trained.

    Attributes:
        name: its folder.
        texts: training texts.
        epochs: how often they are seen.
        max_length: tokens that are read of each.
        metric: the score that leads in the table, and that decides which epoch is kept.
        test: the split to test on.
        validation: texts that decide the epoch.
        batch: texts a step.
        rate: the highest learning rate.
        even: equally many texts of every class.
        strange: a split of texts that belong to no class.
    """

    name: str
    texts: int
    epochs: int
    max_length: int
    metric: str = "accuracy"
    test: str = "test"
    validation: int = 250
    batch: int = 16
    rate: float = 1e-4
    even: bool = False
    strange: str | None = None


TASKS = {
    task.name: task
    for task in (  # the cheapest first
        Task("sst2", 1000, 5, 64),
        Task("trec", 1500, 5, 32),
        Task("cola", 2000, 5, 32, metric="matthews", test="validation"),
        Task("stsb", 1500, 5, 80, metric="pearson"),
        Task("clinc150", 2250, 10, 32, validation=300, batch=32, rate=2e-4, even=True, strange=STRANGE),
        Task("mrpc", 1500, 5, 96),
        Task("rte", 1500, 5, 128, test="validation"),
    )
}


@dataclass(frozen=True)
class Texts:
    """A task's texts for one seed."""

    training: Examples
    validation: Examples
    test: Examples
    strange: Examples | None
    unlabelled: Examples

    def sizes(self) -> dict[str, int]:
        """Returns how many there are of each."""
        parts = {"training": self.training, "validation": self.validation, "test": self.test}
        found = {name: len(part) for name, part in parts.items()}
        return found if self.strange is None else {**found, "out_of_scope": len(self.strange)}


def texts_of(task: Task, seed: int, *, every: bool = False, trial: int | None = None) -> Texts:
    """Returns the texts of a task.

    Args:
        task: the task.
        seed: draws the training texts and those that decide the epoch.
        every: train on all that are left.
        trial: at most so many of each kind, to try the scripts.
    """
    train, test = read(task.name, "train"), read(task.name, task.test)
    strange = None if task.strange is None else read(task.name, task.strange).unlabelled()
    order = np.random.default_rng((seed, len(train))).permutation(len(train)).tolist()
    fresh = _fresh(train, test, order)
    validation = _first(train, fresh, task.validation, even=task.even)
    taken = set(validation)
    rest = [row for row in fresh if row not in taken]
    training = rest if every else _first(train, rest, task.texts, even=task.even)
    taken.update(training)
    unused = [row for row in rest if row not in taken]
    return Texts(
        train.select(training[:trial]),
        train.select(validation[:trial]),
        test.select(range(len(test))[:trial]),
        None if strange is None else strange.select(range(len(strange))[:trial]),
        train.select(unused[:UNLABELLED][:trial]).unlabelled(),
    )


@cache
def read(data: str, split: str) -> Examples:
    """Returns a split; no class is called after the texts that belong to none."""
    examples = read_examples(DATA / data / f"{split}.parquet")
    names = examples.label_names
    if names is None or STRANGE not in names:
        return replace(examples, source=f"{data}/{split}.parquet")
    if names[-1] != STRANGE:
        raise SystemExit(f"{data}: {STRANGE} is not the last label, so that leaving it out would move others")
    return replace(examples, label_names=names[:-1], source=f"{data}/{split}.parquet")


def _fresh(train: Examples, test: Examples, order: Iterable[int]) -> list[int]:
    """Returns the rows in order without repeats, and without any that stand in the test split."""
    seen = set(_keys(test))
    keys = list(_keys(train))
    return [row for row in order if not (keys[row] in seen or seen.add(keys[row]))]


def _keys(examples: Examples) -> Iterator[tuple[str, str]]:
    pairs = examples.pairs or ("",) * len(examples)
    return zip(examples.texts, pairs, strict=True)


def _first(examples: Examples, rows: list[int], count: int, *, even: bool) -> list[int]:
    """Returns the first rows; where `even`, equally many of each class."""
    if not even:
        return rows[:count]
    labels = examples.labels or ()
    each, seen, chosen = count // len(set(labels)), Counter(), []
    for row in rows:
        if seen[labels[row]] < each:
            seen[labels[row]] += 1
            chosen.append(row)
    return chosen
