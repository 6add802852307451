"""The rows of the table: which teachers know which labels, and which texts each part of the experiment may see.

Texts are split by functions of the parquet files and a seed alone. Of a data set's training texts the teachers get
the first, the student the next (the transfer texts); neither ever sees a test text. Equal teachers are one teacher,
whatever row they stand in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from plait.data import Examples, read_examples

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = Path(os.environ.get("PLAIT_DATA", ROOT.parent / "shared" / "datasets"))
WORK = ROOT / "work-files" / "amalgamation"
RESULTS = HERE / "results"
SEEDS = (0, 1, 2)
TESTED = 1000
TEST_SEED = 2022  # the same test texts whatever the seed


@dataclass(frozen=True)
class Pool:
    """How a data set is used.

    Attributes:
        teaching: training texts of the teachers.
        transfer: training texts of the student.
        max_length: tokens that are read of each.
        rate: the highest learning rate of teachers and student.
    """

    teaching: int
    transfer: int
    max_length: int
    rate: float = 1e-4


POOLS = {
    "trec": Pool(1600, 1600, 32),
    "search_snippets": Pool(1200, 1200, 40),
    "ag_news": Pool(1000, 1000, 48),
    "dbpedia14": Pool(1000, 1000, 48),
    "newsgroups20": Pool(1000, 1000, 64, rate=3e-4),
}


@dataclass(frozen=True)
class Teacher:
    """A classifier of some of a data set's labels, by their places in the sorted list of names."""

    data: str
    labels: tuple[int, ...]
    encoder: str = "minilm"

    @property
    def name(self) -> str:
        """Returns a name that equal teachers share."""
        spans = "_".join(f"{run[0]}-{run[-1]}" for run in _runs(self.labels))
        return f"{self.data}.{spans}.{self.encoder}"

    @property
    def label_names(self) -> tuple[str, ...]:
        """Returns the names of its labels."""
        names = sorted_names(self.data)
        return tuple(names[at] for at in self.labels)


@dataclass(frozen=True)
class Row:
    """Teachers in order, and how many transfer and test texts of each of their data sets there are."""

    name: str
    teachers: tuple[Teacher, ...]
    share: float = 1.0
    split: str = "disjoint"  # or shared: the student learns from the teachers' own texts, as in the papers

    @property
    def data(self) -> tuple[str, ...]:
        """Returns the data sets in order."""
        return tuple(dict.fromkeys(teacher.data for teacher in self.teachers))

    @property
    def max_length(self) -> int:
        """Returns the tokens that teachers and student read of each text."""
        return max(POOLS[name].max_length for name in self.data)

    @property
    def rate(self) -> float:
        """Returns the highest learning rate of the student."""
        return max(POOLS[name].rate for name in self.data)


def _runs(labels: tuple[int, ...]) -> list[list[int]]:
    runs: list[list[int]] = []
    for label in labels:
        if runs and label == runs[-1][-1] + 1:
            runs[-1].append(label)
        else:
            runs.append([label])
    return runs


def blocks(data: str, *sizes: int, encoders: tuple[str, ...] = ()) -> tuple[Teacher, ...]:
    """Returns one teacher per block of the sorted labels."""
    ends = np.cumsum(sizes).tolist()
    spans = [tuple(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    return tuple(
        Teacher(data, span, encoder)
        for span, encoder in zip(spans, encoders or ("minilm",) * len(spans), strict=True)
    )


ENCODERS = ("minilm", "minilm3", "distilbert", "roberta")
_MAIN = (  # the cheapest first
    Row("trec 3+3", blocks("trec", 3, 3)),
    Row("search_snippets 2+6", blocks("search_snippets", 2, 6)),
    Row("search_snippets 4x2", blocks("search_snippets", 2, 2, 2, 2)),
    Row("ag_news 2+2", blocks("ag_news", 2, 2)),
    Row("heterogeneous", blocks("search_snippets", 2, 2, 2, 2, encoders=ENCODERS)),
    # Business, Sports, World + Business, Sci/Tech
    Row("overlap", (Teacher("ag_news", (0, 2, 3)), Teacher("ag_news", (0, 1)))),
    Row("dbpedia14 7+7", blocks("dbpedia14", 7, 7)),
    Row("cross", (*blocks("ag_news", 4), *blocks("dbpedia14", 14), *blocks("trec", 6)), share=0.4),
    Row("newsgroups20 10+10", blocks("newsgroups20", 10, 10)),
    Row("newsgroups20 5x4", blocks("newsgroups20", 4, 4, 4, 4, 4)),
)
_SHARED = ("trec 3+3", "search_snippets 2+6", "ag_news 2+2")
ROWS = {
    row.name: row
    for row in (
        *_MAIN,
        *(replace(r, name=f"{r.name} shared", split="shared") for r in _MAIN if r.name in _SHARED),
    )
}


def slug(name: str) -> str:
    """Returns a row's name as a file name."""
    return name.replace(" ", "-").replace("+", "_")


def all_teachers(rows: tuple[Row, ...] | None = None) -> tuple[Teacher, ...]:
    """Returns every teacher once, in the rows' order."""
    return tuple(dict.fromkeys(teacher for row in rows or tuple(ROWS.values()) for teacher in row.teachers))


@cache
def read(data: str, split: str) -> Examples:
    """Returns a split with its labels as names."""
    examples = read_examples(DATA / data / f"{split}.parquet")
    names = examples.label_names or ()
    return replace(examples, labels=tuple(names[at] for at in examples.labels or ()), label_names=None)


@cache
def sorted_names(data: str) -> tuple[str, ...]:
    """Returns a data set's label names in alphabetical order."""
    return tuple(sorted(set(read(data, "train").labels or ())))


@cache
def pools(data: str, seed: int) -> tuple[Examples, Examples]:
    """Returns the teachers' texts and the student's: disjoint, without repeats, and without any test text."""
    train, seen = read(data, "train"), set(read(data, "test").texts)
    fresh = [row for row, text in enumerate(train.texts) if not (text in seen or seen.add(text))]
    order = np.random.default_rng((seed, len(fresh))).permutation(fresh).tolist()
    size = POOLS[data]
    first, last = size.teaching, size.teaching + size.transfer
    return train.select(order[:first]), train.select(order[first:last])


def taught(teacher: Teacher, seed: int) -> Examples:
    """Returns the texts a teacher learns from: those of its own labels."""
    pool = pools(teacher.data, seed)[0]
    own = set(teacher.label_names)
    return pool.select([row for row, label in enumerate(pool.labels or ()) if label in own])


def transfer(row: Row, seed: int) -> Examples:
    """Returns the texts the student learns from, with labels that only the oracle and the bound may read."""
    parts = [pools(name, seed)[1 if row.split == "disjoint" else 0] for name in row.data]
    return together([part.select(range(round(row.share * len(part)))) for part in parts])


def test(row: Row) -> Examples:
    """Returns the held-out texts."""
    parts = [read(name, "test").sample(round(row.share * TESTED), TEST_SEED) for name in row.data]
    return together(parts)


def together(parts: list[Examples]) -> Examples:
    """Returns several sets of texts as one."""
    labels = tuple(label for part in parts for label in part.labels or ())
    return Examples(tuple(text for part in parts for text in part.texts), labels=labels, source="experiment")
