"""Passes in rounds: all teachers take a few, then the texts whose routing is decided are left out of the rest."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from plait import progress
from plait.statistics.posteriors.files import read_facts, read_shard
from plait.statistics.posteriors.run import Piece, Run
from plait.statistics.posteriors.scorer import Scorer, Tensors, Turn
from plait.statistics.posteriors.stopping import decided
from plait.statistics.posteriors.summary import summarize
from plait.statistics.posteriors.teacher import Teacher


def in_rounds(run: Run) -> None:
    """Scores round by round, each pass kept on disk until all rounds are over; one teacher in memory at a time."""
    unfinished = [n for n in range(run.record.shards) if not _finished(run, n)]
    for turn in range(len(run.settings.rounds)):
        for checkpoint, teacher in zip(run.checkpoints, run.teachers, strict=True):
            pending = [n for n in unfinished if _waits(run, teacher, n, turn)]
            work = partial(_advance, run, teacher, turn)
            run.visit(checkpoint, pending, f"round {turn + 1} of", work)
    for number in unfinished:
        _summarize(run, number)
    for teacher in run.teachers:
        run.finish(teacher)


def _finished(run: Run, number: int) -> bool:
    return all(run.has(run.file(teacher, number), teacher, number) for teacher in run.teachers)


def _waits(run: Run, teacher: Teacher, number: int, turn: int) -> bool:
    """Says whether a teacher has this round before it in a shard."""
    file = run.rounds_file(teacher, number)
    if not run.has(file, teacher, number):
        # A teacher that has been summed up already has had its rounds.
        return turn == 0 and not run.has(run.file(teacher, number), teacher, number)
    return int(read_facts(file)["turns"]) == turn and len(_open(run, number, turn)) > 0


def _open(run: Run, number: int, turn: int) -> Tensor:
    """Returns the rows of a shard whose routing is still open after the first `turn` rounds."""
    done, settings = sum(run.settings.rounds[:turn]), run.settings
    states = [read_shard(run.rounds_file(teacher, number))[0] for teacher in run.teachers]
    rows = (states[0]["passes"] >= done).nonzero().squeeze(-1)
    seen = [state["probabilities"][rows, :done] for state in states]
    return rows[~decided(seen, settings.passes, settings.stop)]


def _advance(  # noqa: PLR0917 - `partial` gives the first three
    run: Run, teacher: Teacher, turn: int, scorer: Scorer, piece: Piece, tick: progress.Tick
) -> None:
    """Takes one round of passes with the rows that are open, and keeps each pass."""
    file, passes = run.rounds_file(teacher, piece.number), run.settings.rounds[turn]
    order = Turn(piece.number, turn, passes, whole=True)
    if turn == 0:
        state, before = scorer.score(piece.examples, order, tick), 0.0
        state["passes"] = torch.full((len(piece.examples),), passes, dtype=torch.int32)
    else:
        state, facts = read_shard(file)
        rows, before = _open(run, piece.number, turn), float(facts["forwards"])
        found = scorer.score(piece.examples.select(rows.tolist()), order, tick)
        _add(state, rows, found["probabilities"])
    forwards = before + scorer.meter.forwards
    run.write(file, teacher, piece.key, scorer.limit, forwards, state, turns=turn + 1)


def _add(state: Tensors, rows: Tensor, passes: Tensor) -> None:
    """Puts further passes of some rows behind those they had; the others get none."""
    more = passes.new_zeros(len(state["passes"]), *passes.shape[1:])
    more[rows] = passes
    state["probabilities"] = torch.cat([state["probabilities"], more], 1)
    state["passes"][rows] += passes.shape[1]


def _summarize(run: Run, number: int) -> None:
    """Sums up the passes of every teacher, and only then removes them."""
    files = [run.rounds_file(teacher, number) for teacher in run.teachers]
    for teacher, file in zip(run.teachers, files, strict=True):
        if not run.has(run.file(teacher, number), teacher, number):
            state, facts = read_shard(file)
            run.write(
                run.file(teacher, number), teacher, facts["texts"], facts["limit"], facts["forwards"], _summary(state)
            )  # fmt: skip
    for file in files:
        file.unlink(missing_ok=True)


def _summary(state: Tensors) -> Tensors:
    passes, counts = state.pop("probabilities"), state["passes"]
    found: Tensors = {}
    for count in counts.unique().tolist():
        rows = (counts == count).nonzero().squeeze(-1)
        for name, value in vars(summarize(passes[rows, :count])).items():
            found.setdefault(name, value.new_empty(len(counts), *value.shape[1:]))[rows] = value
    return {**state, **found}
