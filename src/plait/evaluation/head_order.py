"""The order of labels that are called by placeholders, found on labelled data: heads of one task must mean one thing.

Of two heads with `LABEL_0` and `LABEL_1` nobody knows whether their rows mean the same. Where their task comes with
labels, the sources' own answers tell which row stands for which label, or that too few of them are right to tell.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.compatibility import Rows, titles, unproved_order
from plait.data import Examples, align_labels
from plait.data.examples import ONE_ANSWER
from plait.data.reading import read
from plait.errors import DataError

logger = logging.getLogger("plait")
TEXTS = 256
SURE = 3.0
"""Standard deviations by which right answers must outnumber those with two labels swapped, for every two labels."""


def orders_on_data(
    tasks: Mapping[str, Sequence[Checkpoint]], data: Mapping[str, Sequence[Any]], *, dry: bool = False
) -> dict[str, Rows]:
    """Returns by source the rows that put its head in the order of its task's first source, where data prove it.

    Sources whose labels have names, and tasks without labelled data, are left out.

    Args:
        tasks: the sources of each task.
        data: by task what may hold its labelled texts; the first that does is asked.
        dry: whether models are not to be run: where data would be asked, it says so, and takes the order as it stands.
    """
    orders: dict[str, Rows] = {}
    for task, (first, *others) in tasks.items():
        doubtful = [other for other in others if _in_question(first, other)]
        examples = _labelled(data[task]) if doubtful else None
        if examples is None:
            continue
        if dry:
            logger.info(
                "task %s: whether %s has its labels in the order of %s will be found on %s",
                *(task, " and ".join(other.name for other in doubtful), first.name, examples.source),
            )
            orders |= {other.name: None for other in doubtful}
            continue
        truth = _codes(examples, first)
        found = {source.name: _order(source, examples, truth) for source in (first, *others)}
        orders |= _relative(task, first, others, found)
    return orders


def in_one_order(
    sources: Sequence[Checkpoint], data: Sequence[Any], *, dry: bool = False
) -> tuple[Checkpoint, ...]:
    """Returns checkpoints of one task, placeholder labels of the others called as the first one's where data prove it.

    What is not proved stays as it is, for `unproved_order` to refuse.
    """
    called = [replace(source, name=title) for source, title in zip(sources, titles(sources), strict=True)]
    orders = orders_on_data({"of the ensemble": called}, {"of the ensemble": data}, dry=dry)
    first = sources[0]
    if not orders or first.labels is None:
        return tuple(sources)
    proved = [replace(first, order_known=True)]
    for source, title in zip(sources[1:], titles(sources)[1:], strict=True):
        if title not in orders:
            proved.append(source)
            continue
        rows = orders[title] or range(len(first.labels))
        labels = tuple(label for _, label in sorted(zip(rows, first.labels, strict=True)))
        proved.append(replace(source, labels=labels, order_known=True))
    return tuple(proved)


def _in_question(first: Checkpoint, other: Checkpoint) -> bool:
    """Says whether nothing but data can tell the order of two heads."""
    plain = all(c.problem_type == "single_label_classification" for c in (first, other))
    alike = first.kind == other.kind and first.kind in ONE_ANSWER and set(first.labels or ()) == set(other.labels or ())
    return plain and alike and bool(unproved_order(first, other))


def _labelled(entries: Sequence[Any]) -> Examples | None:
    """Returns labelled texts: the first of what there is that has labels of whole texts."""
    for entry in entries:
        if entry is None or isinstance(entry, Iterator):  # what can be read only once is left to the merge
            continue
        found = read(entry, limit=TEXTS)
        if found.kind in ONE_ANSWER and found.labels and all(v is not None for v in found.labels):
            return found
    return None


def _codes(examples: Examples, first: Checkpoint) -> NDArray[np.int64]:
    """Returns the labels of texts as numbers: a head's own where it has them, else in alphabetical order."""
    try:
        moved = align_labels(examples, first.labels, problem_type="single_label_classification").labels
    except DataError:
        names = {name: at for at, name in enumerate(sorted({str(label) for label in examples.labels or ()}))}
        moved = tuple(names[str(label)] for label in examples.labels or ())
    return np.asarray(moved, dtype=np.int64)


def _order(source: Checkpoint, examples: Examples, truth: NDArray[np.int64]) -> tuple[int, ...] | None:
    """Returns for each label of the data the row of a head that stands for it; None where that is not sure."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import confusion_matrix

    from plait.evaluation.predict import predict_logits

    rows = len(source.labels or ())
    if int(truth.max()) >= rows:
        return None
    logits = predict_logits(source.model(), source.tokenizer(), examples)
    said = [int(row.argmax()) for row in logits]
    counts = confusion_matrix(truth, said, labels=range(rows)).astype(float)
    order = linear_sum_assignment(counts, maximize=True)[1]
    held = counts[:, order]  # right answers on the diagonal
    right = np.diag(held)
    kept, swapped = right[:, None] + right[None], held + held.T
    sure = kept - swapped >= SURE * np.sqrt(kept + swapped)
    alone = (kept + swapped > 0) & (sure | np.eye(rows, dtype=bool))
    share = float(right.sum() / counts.sum())
    logger.info(
        "%s: %.0f %% of %d texts right as its labels stand, %.0f %% in the best order",
        *(source.name, 100 * np.trace(counts) / counts.sum(), len(truth), 100 * share),
    )
    return tuple(int(row) for row in order) if bool(alone.all()) else None


def _relative(
    task: str, first: Checkpoint, others: Sequence[Checkpoint], orders: Mapping[str, tuple[int, ...] | None]
) -> dict[str, Rows]:
    """Returns the rows of other heads in the order of the first one's, and says what was found."""
    own = orders[first.name]
    found: dict[str, Rows] = {}
    for other in others if own is not None else ():
        theirs = orders[other.name]
        if own is None or theirs is None:
            continue
        rows = tuple(theirs[own.index(row)] for row in range(len(own)))
        same = rows == tuple(range(len(rows)))
        found[other.name] = None if same else rows
        logger.warning(
            "task %s: by their answers on its data, %s has its labels in %s order %s %s%s",
            *(task, other.name, "the same" if same else "another", "as" if same else "than", first.name),
            "" if same else f": rows {list(rows)} become {list(range(len(rows)))}",
        )
    return found
