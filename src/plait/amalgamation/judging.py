"""Whom to believe: one gate's scores, or several gates' together, as far as what they look at is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait.amalgamation.calibration import standardize
from plait.amalgamation.evidence import Evidence, gate_inputs, needed
from plait.amalgamation.gate import GateEntry
from plait.amalgamation.labels import LabelSpace
from plait.amalgamation.panel import STUDENT, Verdict, auto, fitted
from plait.amalgamation.routing import route
from plait.statistics.posteriors import Posterior

if TYPE_CHECKING:
    from plait.amalgamation.lesson import Choices


def judge(  # noqa: PLR0917 - all that a gate may look at
    posteriors: Sequence[Posterior],
    space: LabelSpace,
    choices: Choices,
    temperatures: Sequence[float],
    truth: Tensor | None,
    evidence: Evidence,
) -> Verdict:
    """Returns whom to believe on each text: what one gate says, or several together."""
    scored = partial(gate_scores, posteriors, space, temperatures=temperatures, truth=truth, evidence=evidence)
    if not choices.joint:
        scores = scored(choices.gate_entries[0], choices.gate_options)
        if choices.calibrate == "standardize":
            scores = standardize(scores)
        alone = evidence.mass is None and choices.calibrate != "auto"
        members = {} if alone else {choices.gate: scores}
        if not members:
            return Verdict(route(scores, temperature=choices.softness))
    else:
        members = {entry.name: scored(entry, {}) for entry in members_of(choices, posteriors, evidence)}
    if evidence.mass is not None:
        members[STUDENT] = evidence.mass
    panel = torch.stack(list(members.values()), -1)
    if choices.gate == "fitted" and evidence.labelled is not None:
        rows = torch.arange(len(panel) - evidence.extra, len(panel))
        return fitted(panel, list(members), evidence.labelled, rows)
    return auto(panel, list(members))


def members_of(
    choices: Choices, posteriors: Sequence[Posterior], evidence: Evidence
) -> tuple[GateEntry, ...]:
    """Returns the gates of a joint one whose inputs are there for all teachers.

    `auto` takes `base` only where neither the words nor the updates are known: with them it would say a third time
    what they say; and `entropy` only where nothing else is.
    """
    have = {"logits"}
    have |= {"features"} if all(p.features is not None for p in posteriors) else set()
    have |= {"base"} if evidence.base is not None else set()
    have |= {"near"} if evidence.near is not None else set()
    have |= set.intersection(*(set(own) for own in evidence.teachers)) if evidence.teachers else set()
    able = [entry for entry in choices.gate_entries if have.issuperset(needed(entry, {}))]
    if choices.gate == "auto":
        names = [entry.name for entry in able]
        if {"vocabulary", "update"} & set(names):
            names = [name for name in names if name != "base"]
        names = [name for name in names if name != "entropy"] or names
        able = [entry for entry in able if entry.name in names]
    return tuple(able)


def gate_scores(
    posteriors: Sequence[Posterior],
    space: LabelSpace,
    entry: GateEntry,
    options: Mapping[str, Any],
    *,
    temperatures: Sequence[float],
    truth: Tensor | None = None,
    evidence: Evidence | None = None,
) -> Tensor:
    """Returns how competent a gate finds each teacher on each text, [n, t]."""
    columns = [
        entry.function(
            **gate_inputs(
                entry, posterior, space.known(at), logits=posterior.logits / t, truth=truth,
                evidence=evidence or Evidence(), at=at, options=options,
            ),
            **options,
        )
        for at, (posterior, t) in enumerate(zip(posteriors, temperatures, strict=True))
    ]  # fmt: skip
    return torch.stack([column.double() for column in columns], 1)


def agreeing(verdict: Verdict) -> Tensor:
    """Returns the share of a panel's gates that by themselves believe whom all together believe, per text."""
    same = [choice == verdict.routing.choice for choice in verdict.members.values()]
    return torch.stack(same).float().mean(0)


def panel_told(verdict: Verdict, space: LabelSpace, truth: Tensor | None, known: Tensor) -> dict[str, Any]:
    """Returns of each gate of a panel its weight, how often it agrees with all, and, given labels, is right."""
    about: dict[str, dict[str, float]] = {name: dict(of) for name, of in verdict.evidence["gates"].items()}
    for name, choice in verdict.members.items():
        about[name]["agrees"] = round(float((choice == verdict.routing.choice).double().mean()), 4)
        if truth is not None and bool((truth >= 0).any()):
            labelled = truth >= 0
            right = known[choice[labelled], truth[labelled]].double().mean()
            about[name]["routing"] = round(float(right), 4)
    prior = dict(zip(space.teachers, verdict.evidence["prior"], strict=True))
    return {**verdict.evidence, "gates": about, "prior": prior}
