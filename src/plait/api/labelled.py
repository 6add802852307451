"""What students are taught from, put together: posteriors, evidence, and the labelled texts that a gate learns from.

Apart from the stages because it is the one place where two corpora are read as one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plait.amalgamation.evidence import Evidence
from plait.amalgamation.labels import LabelSpace
from plait.amalgamation.neighbours import nearest
from plait.api.evidence import Gathered, gather
from plait.api.teachers import AmalgamationPlan
from plait.api.teaching import Material
from plait.data import Examples, Texts, align_labels, open_texts
from plait.errors import RecipeError
from plait.statistics.posteriors import Posterior, Store, score_texts
from plait.statistics.posteriors.record import OtherStoreError
from plait.statistics.posteriors.score import text_facts

FEWEST = 8
"""Labelled texts below which a gate cannot learn from them."""


def material_of(job: AmalgamationPlan, store: Store, truth: Tensor | None) -> tuple[Material, Gathered]:
    """Returns what students are taught from, and the evidence of the corpus with what it cost.

    For the gate `fitted` the teachers read the labelled texts too, into a store beside the corpus's, and gates score
    all together: a gate's scale is that of the texts it sees.

    Raises:
        RecipeError: too few labelled texts for a gate to learn from.
    """
    found = gather(job.choices, job.bases, job.teachers, store, job.texts, job.recipe.max_length)
    posteriors = [store.posterior(t.name) for t in job.teachers]
    if job.choices.gate != "fitted":
        return Material(posteriors, found.evidence, truth), found
    assert job.validation is not None
    if len(job.validation) < FEWEST:
        raise RecipeError(f"gate fitted: {len(job.validation)} labelled texts; give {FEWEST} or more, or --gate auto")
    texts = open_texts(job.validation.unlabelled())
    beside = score_labelled(job, store, texts)
    more = gather(job.choices, job.bases, job.teachers, beside, texts, job.recipe.max_length)
    both = [joined(p, beside.posterior(t.name)) for p, t in zip(posteriors, job.teachers, strict=True)]
    known = known_of(job.validation, job.space)
    return Material(both, together(found.evidence, more.evidence, known), truth), found


def score_labelled(job: AmalgamationPlan, store: Store, texts: Texts) -> Store:
    """Returns what the teachers say of labelled texts, kept in the corpus's store; made anew if made otherwise."""
    folder = store.folder / "labelled" / text_facts(texts).fingerprint[:16]
    try:
        return score_texts(folder, texts, job.teachers, job.settings)
    except OtherStoreError:
        return score_texts(folder, texts, job.teachers, job.settings, overwrite=True)


def joined(one: Posterior, other: Posterior) -> Posterior:
    """Returns what a teacher said of two sets of texts."""

    def both(a: Any, b: Any) -> Any:
        return None if a is None or b is None else torch.cat([a, b])

    return Posterior(**{name: both(value, getattr(other, name)) for name, value in vars(one).items()})


def known_of(examples: Examples, space: LabelSpace) -> Tensor:
    """Returns per labelled text whether each teacher has its label, [m, t]."""
    aligned = align_labels(
        examples, space.names, kind="sequence_classification", problem_type="single_label_classification"
    )
    labels = torch.tensor([int(label) for label in aligned.labels or ()])
    return torch.stack([space.known(at)[labels] for at in range(len(space.teachers))], 1)


def together(one: Evidence, other: Evidence, known: Tensor) -> Evidence:
    """Returns the evidence of a corpus and of labelled texts behind it."""
    base = None if one.base is None or other.base is None else torch.cat([one.base, other.base])
    near = None if one.near is None or base is None else nearest(base)
    teachers = []
    for first, second in zip(one.teachers, other.teachers, strict=True):
        own = {name: value for name, value in first.items() if name == "drift"}
        if "tokens" in first and "tokens" in second:
            own["tokens"] = torch.cat([first["tokens"], second["tokens"]])
            own["starts"] = torch.cat([first["starts"], second["starts"][1:] + first["starts"][-1]])
        if "response" in first and "response" in second:
            own["response"] = torch.cat([first["response"], second["response"]])
        teachers.append(own)
    return replace(one, base=base, near=near, teachers=tuple(teachers), labelled=known)
