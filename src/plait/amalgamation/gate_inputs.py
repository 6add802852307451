"""What gates look at beside the posteriors: base features, words, what fine-tuning has changed, earlier students."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from plait.amalgamation.choices import Choices
from plait.amalgamation.gate import GateEntry
from plait.amalgamation.initialization import MERGED, Start
from plait.amalgamation.neighbours import nearest
from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint
from plait.data import Texts
from plait.errors import DataError, PlaitError, RecipeError, SourceError
from plait.recipe import AmalgamateRecipe
from plait.teachers import Posterior, Store
from plait.teachers.embedding_drift import check_kin, embedding_drift, words_of
from plait.teachers.extras import base_states
from plait.teachers.update_response import PASSES, update_response

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
    remembered = evidence.teachers[at] if evidence.teachers else {}
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
        **{name: remembered.get(name) for name in ("drift", "tokens", "starts", "response")},
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


logger = logging.getLogger("plait")

OWN = frozenset({"drift", "tokens", "starts", "response"})
"""What comes of a teacher and its base."""


@dataclass(frozen=True)
class Bases:
    """The encoders from before fine-tuning.

    Attributes:
        base: whose geometry says which texts are alike; None where none is known.
        teachers: per teacher what it was fine-tuned from; None where that is not known or not here.
    """

    base: Checkpoint | None
    teachers: tuple[Checkpoint | None, ...]

    @cached_property
    def whole(self) -> bool:
        """Says whether the base of every teacher is known."""
        return bool(self.teachers) and all(base is not None for base in self.teachers)


def bases_of(recipe: AmalgamateRecipe, teachers: Sequence[Checkpoint], start: Start) -> Bases:
    """Returns the encoders from before fine-tuning: as told by `base`, else as recorded, else the student's start.

    Raises:
        SourceError: the base that is told cannot be opened.
    """
    trust = recipe.trust_remote_code
    if recipe.base is not None:
        named = open_checkpoint(recipe.base, name="base", trust_remote_code=trust)
        return Bases(named, tuple(_recorded(t, trust) or named for t in teachers))
    recorded = tuple(_recorded(t, trust) for t in teachers)
    begun = None if start.origin == MERGED else _opened(start.origin, trust, start.revision)
    bare = begun if begun is not None and begun.kind == "body" else None
    digests = {b.digest for b in recorded if b is not None}
    shared = recorded[0] if len(digests) == 1 and None not in recorded else None
    return Bases(bare or shared, tuple(one or bare for one in recorded))


def _recorded(teacher: Checkpoint, trust: bool) -> Checkpoint | None:
    return None if teacher.recorded_base is None else _opened(teacher.recorded_base, trust)


def _opened(origin: str, trust: bool, revision: str | None = None) -> Checkpoint | None:
    """Returns a checkpoint; None where it is not here: what is recorded is a hint."""
    try:
        return open_checkpoint(origin, name="base", revision=revision, trust_remote_code=trust)
    except PlaitError as error:
        logger.info("base %s is not used: %s", origin, error)
        return None


def check_bases(choices: Choices, bases: Bases) -> None:
    """Raises `RecipeError` where the one gate that was chosen needs a base and none is known."""
    if choices.joint or not choices.gated:
        return
    (entry,) = choices.gate_entries
    wanted = needed(entry, choices.gate_options)
    if (bases.base is None and {"base", "near"} & wanted) or (OWN & wanted and not bases.whole):
        raise RecipeError(
            f"gate {entry.name} needs the encoder from before fine-tuning, and none is recorded or at hand: give "
            "--base MODEL"
        )


def _wanted(choices: Choices) -> set[str]:
    return {name for entry in choices.gate_entries for name in needed(entry, choices.gate_options)}


def expected_passes(choices: Choices, bases: Bases, teachers: int) -> float:
    """Returns the forward passes per text that evidence will take at most."""
    wanted = _wanted(choices) if choices.gated else set()
    base = 1.0 if {"base", "near"} & wanted and bases.base is not None else 0.0
    return base + (PASSES * teachers if "response" in wanted and bases.whole and teachers else 0.0)


@dataclass(frozen=True)
class Gathered:
    """Evidence, and the forward passes per text that it took: in all, and of that now."""

    evidence: Evidence
    passes: float = 0.0
    now: float = 0.0


def gather(  # noqa: PLR0917 - all that evidence is made of
    choices: Choices, bases: Bases, teachers: Sequence[Checkpoint], store: Store, texts: Texts, max_length: int
) -> Gathered:
    """Returns what the gate, or those of a joint one, look at; a joint one does without what is not to be had.

    Raises:
        SourceError: the one gate that was chosen lacks something; says what.
    """
    if not choices.gated:
        return Gathered(Evidence())
    wanted = _wanted(choices)
    gathered = Gathered(Evidence())
    if {"base", "near"} & wanted and bases.base is not None:
        gathered = _of_base(bases.base, store, texts, max_length, near="near" in wanted)
    if OWN & wanted and bases.whole and _tried(partial(_all_kin, bases, teachers), choices, "vocabulary and update"):
        gathered = _of_teachers(gathered, wanted, choices, bases, teachers, store, texts, max_length)
    return gathered


def _all_kin(bases: Bases, teachers: Sequence[Checkpoint]) -> None:
    for teacher, base in zip(teachers, bases.teachers, strict=True):
        if base is not None:
            check_kin(teacher, base)


def _of_base(base: Checkpoint, store: Store, texts: Texts, max_length: int, *, near: bool) -> Gathered:
    states = base_states(store, texts, base, max_length)
    evidence = Evidence(base=states.values, near=nearest(states.values) if near else None)
    return Gathered(evidence, 1.0, states.read / store.count)


def _of_teachers(  # noqa: PLR0917 - all that evidence is made of
    found: Gathered, wanted: set[str], choices: Choices, bases: Bases, teachers: Sequence[Checkpoint],
    store: Store, texts: Texts, max_length: int,
) -> Gathered:  # fmt: skip
    """Returns the evidence with what each teacher's weights remember, as far as all of them do."""
    rows: list[dict[str, Tensor]] = [{} for _ in teachers]
    passes = now = 0.0
    pairs = [(t, b) for t, b in zip(teachers, bases.teachers, strict=True) if b is not None]

    def words() -> None:
        moved = [embedding_drift(t, b) for t, b in pairs]
        for row, (teacher, _), drift in zip(rows, pairs, moved, strict=True):
            read = words_of(texts, teacher, max_length)
            row.update(drift=drift, tokens=read.tokens, starts=read.starts)

    def updates() -> None:
        nonlocal passes, now
        for row, (teacher, base) in zip(rows, pairs, strict=True):
            response = update_response(store, texts, teacher, base, max_length)
            row.update(response=response.values)
            passes, now = passes + PASSES, now + PASSES * response.read / store.count

    if "drift" in wanted:
        _tried(words, choices, "vocabulary")
    if "response" in wanted:
        _tried(updates, choices, "update")
    complete = set.intersection(*(set(row) for row in rows))
    remembered = tuple({name: row[name] for name in complete} for row in rows)
    return Gathered(replace(found.evidence, teachers=remembered), found.passes + passes, found.now + now)


def _tried(work: Callable[[], None], choices: Choices, gate: str) -> bool:
    """Does what a gate needs; where it is one of several and cannot be had, says so and returns False."""
    try:
        work()
    except SourceError as error:
        if not choices.joint:
            raise
        logger.info("gate %s has no say: %s", gate, error)
        return False
    return True
