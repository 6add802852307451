"""What a taught model is measured against: each of its teachers alone, and all of them at once, on the same rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.amalgamation.labels import LabelSpace, union
from plait.amalgamation.targets import concat
from plait.api.corpus import warn_of_places
from plait.api.students import taught_by
from plait.checkpoints.files import read_json
from plait.checkpoints.source import open_checkpoint
from plait.data import Examples, align_labels
from plait.ensembles.teaching import columns
from plait.errors import PlaitError
from plait.evaluation import predict_logits, score

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
    told = record["teachers"]
    space = union({name: t["labels"] for name, t in told.items()}, record["recipe"].get("rename"))
    warn_of_places(examples.source, examples, space.names)
    aligned = align_labels(examples, space.names, problem_type="single_label_classification")
    logits = {
        name: _logits(name, about, examples, batch_size, max_length, trust_remote_code)
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


def member_answers(
    folder: Path, examples: Examples, names: Sequence[str] | None, *, batch_size: int, max_length: int | None
) -> dict[str, Tensor]:
    """Returns the logits [N, C] of the members that taught a model, where they were kept, in the order of its labels.

    Members that are gone or have changed are left out, with a warning; nothing where no members taught it.
    """
    told = read_json(folder / "plait.json").get("teachers", {})
    found: dict[str, Tensor] = {}
    for name, about in told.items():
        if about.get("origin") is not None:
            rows = _logits(name, about, examples, batch_size, max_length, False)
            if rows is not None:
                found[name] = rows[:, columns(name, about.get("labels") or None, names)]
    return found


def _logits(  # noqa: PLR0917 - what predicting takes
    name: str,
    about: Mapping[str, Any],
    examples: Examples,
    batch_size: int,
    max_length: int | None,
    trust_remote_code: bool,
) -> Tensor | None:
    """Returns a teacher's logits, or None (with a warning) when it is gone or its weights have changed."""
    try:
        teacher = open_checkpoint(
            about["origin"],
            name=name,
            revision=about.get("revision"),
            trust_remote_code=trust_remote_code,
            ask_hub=False,
        )
        if teacher.digest != about.get("digest"):
            logger.warning("teacher %s (%s) has changed: left out", name, about["origin"])
            return None
        rows = predict_logits(
            teacher.model(),
            teacher.tokenizer(),
            examples.unlabelled(),
            batch_size=batch_size,
            max_length=max_length,
        )
    except PlaitError as error:
        logger.warning("teacher %s cannot be scored: %s", name, error)
        return None
    return torch.stack(rows)
