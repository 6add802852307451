"""Baselines of a student on the same rows: each teacher alone, and all at once; apart because it opens old teachers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from plait.amalgamation.label_space import LabelSpace, union
from plait.amalgamation.student import taught_by
from plait.amalgamation.targets import concat
from plait.amalgamation.texts import warn_of_places
from plait.data import Examples, align_labels
from plait.evaluation import score
from plait.evaluation.scores import recorded_logits
from plait.reports.record import models_from

logger = logging.getLogger("plait")
TOGETHER = "all teachers, logits side by side"


def teacher_scores(
    folder: Path, examples: Examples, *, batch_size: int, max_length: int | None, trust_remote_code: bool
) -> dict[str, dict[str, float]]:
    """Returns the scores of each teacher of a student over the union of labels, and of all with their logits joined.

    A teacher gives no probability to labels it does not have. Teachers that are gone or have changed are left out, with
    a warning; the joined logits then are, too. A checkpoint that was not taught has no teachers.
    """
    record = taught_by(folder)
    if not record:
        return {}
    told = models_from(folder, record["teachers"])
    space = union({name: t["labels"] for name, t in told.items()}, record["recipe"].get("rename"))
    warn_of_places(examples.source, examples, space.names)
    aligned = align_labels(examples, space.names, problem_type="single_label_classification")
    logits = {
        name: recorded_logits(name, about, examples, batch_size, max_length, trust_remote_code)
        for name, about in told.items()
    }
    return scores_of(logits, space, aligned)


def scores_of(
    logits: Mapping[str, Tensor | None], space: LabelSpace, aligned: Examples
) -> dict[str, dict[str, float]]:
    """Returns the scores that teachers' logits give over the union, those of all together last."""
    found = {
        name: space.pad(at, rows.softmax(-1))
        for at, (name, rows) in enumerate(logits.items())
        if rows is not None
    }
    known = [rows for rows in logits.values() if rows is not None]
    if len(known) == len(logits):
        found[TOGETHER] = concat(known, space)
    return {name: score(list(rows.log()), aligned) for name, rows in found.items()}
