"""What gates may look at beside the posteriors: the base, the words, what fine-tuning has changed, earlier students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plait.amalgamation.gate import GateEntry
from plait.errors import DataError
from plait.statistics.posteriors import Posterior

REMEDIES = {
    "labels": "it is for study, on texts with labels; name their column",
    "features": "the posteriors were kept without; make them anew with features",
    "layers": "the posteriors were kept without; make them anew with --keep layers",
    "mean": "the posteriors were made without Monte Carlo passes; give passes",
    "expected_entropy": "the posteriors were made without Monte Carlo passes; give passes",
    "base": "name the encoder from before fine-tuning with --base",
    "near": "name the encoder from before fine-tuning with --base, or give the gate neighbours=0",
    "drift": "name the encoder that the teachers were fine-tuned from with --base",
    "tokens": "name the encoder that the teachers were fine-tuned from with --base",
    "starts": "name the encoder that the teachers were fine-tuned from with --base",
    "response": "name the encoder that the teachers were fine-tuned from with --base",
}


@dataclass(frozen=True)
class Evidence:
    """What is known of n texts beside what the teachers said.

    Attributes:
        base: the features of the encoder that was not fine-tuned; None where no such encoder is known.
        near: the texts nearest to each text in these.
        teachers: per teacher what only it has: `drift`, `tokens`, `starts`, `response`.
        labelled: of the last m texts, which have labels, whether each teacher has the label, [m, t].
        mass: what the student of the round before gives each teacher's labels, the logarithm, [n, t].
    """

    base: Tensor | None = None
    near: Tensor | None = None
    teachers: Sequence[Mapping[str, Tensor]] = ()
    labelled: Tensor | None = None
    mass: Tensor | None = None

    @property
    def extra(self) -> int:
        """Returns how many of the texts are labelled ones that the student is not taught on."""
        return 0 if self.labelled is None else len(self.labelled)


def gate_inputs(
    entry: GateEntry, posterior: Posterior, known: Tensor, *, logits: Tensor, truth: Tensor | None,
    evidence: Evidence, at: int, options: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Returns what a gate asks for of one teacher.

    Raises:
        DataError: Something of it is not there; says what to do.
    """
    ran = bool((posterior.passes > 0).all())
    own = evidence.teachers[at] if evidence.teachers else {}
    every: dict[str, Any] = {
        "logits": logits,
        "mean": posterior.mean if ran else None,
        "expected_entropy": posterior.expected_entropy if ran else None,
        "features": posterior.features,
        "layers": posterior.layers,
        "labels": truth,
        "known": known,
        "base": evidence.base,
        "near": evidence.near if asks_neighbours(entry, options) else torch.zeros(len(logits), 0, dtype=torch.long),
        **{name: own.get(name) for name in ("drift", "tokens", "starts", "response")},
    }
    lacking = [name for name in entry.inputs if every[name] is None]
    if lacking:
        raise DataError(f"gate {entry.name} needs {', '.join(lacking)}: {REMEDIES[lacking[0]]}")
    return {name: every[name] for name in entry.inputs}


def needed(entry: GateEntry, options: Mapping[str, Any]) -> set[str]:
    """Returns what a gate with these options cannot do without."""
    return set(entry.inputs) - (set() if asks_neighbours(entry, options) else {"near"})


def asks_neighbours(entry: GateEntry, options: Mapping[str, Any]) -> bool:
    """Says whether a gate with these options looks at a text's neighbours in the base."""
    if "near" not in entry.inputs:
        return False
    return bool(options.get("neighbours", entry.options["neighbours"].default))
