"""Passes in rounds: texts whose routing is decided are left out of the remaining passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from plait import progress
from plait.teachers.files import read_facts, read_shard
from plait.teachers.mc_dropout import Scorer, Tensors, Turn, entropy, slopes, summarize
from plait.teachers.settings import Stop
from plait.teachers.shards import Run, ShardTask
from plait.teachers.teacher import Teacher


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
    run: Run, teacher: Teacher, turn: int, scorer: Scorer, piece: ShardTask, tick: progress.Tick
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


SURE = 4.0
"""Standard errors between the best teacher and another that make a text's routing likely to stay."""


def decided(passes: Sequence[Tensor], total: int, stop: Stop) -> Tensor:
    """Returns for each of n texts whether its hard routing by the muka gate is decided after k of `total` passes.

    Args:
        passes: by teacher the probabilities [n, k, C_i] of the passes so far.
        total: K.
        stop: `certain` or `likely`.
    """
    if len(passes) == 1:
        return torch.ones(len(passes[0]), dtype=torch.bool)
    return _certain(passes, total) if stop == "certain" else _likely(passes, total)


def scores(mean: Tensor) -> Tensor:
    """Returns 1 − H(p̄) / log C."""
    return 1 - entropy(mean) / math.log(mean.shape[-1])


def bounds(mean: Tensor, done: int, total: int) -> tuple[Tensor, Tensor]:
    """Returns the least and the greatest score that the mean of all K passes can have after k of them.

    The final mean is (k p̄ + (K − k) q) / K with any q of the simplex. Entropy is concave: it is least with all of q
    on one class, the likeliest so far, and greatest with q poured like water on the least likely ones.
    """
    fixed = mean.double() * (done / total)
    rest = 1 - done / total
    sharp = fixed.clone()
    sharp.scatter_add_(-1, mean.argmax(-1, keepdim=True), torch.full_like(fixed[..., :1], rest))
    return scores(_poured(fixed, rest)), scores(sharp)


def _poured(fixed: Tensor, rest: float) -> Tensor:
    """Returns max(fixed, level) with the level at which `rest` has been added in all."""
    ascending = fixed.sort(-1).values
    count = torch.arange(1, fixed.shape[-1] + 1, dtype=fixed.dtype)
    levels = (ascending.cumsum(-1) + rest) / count
    # The level over the i smallest holds if it does not reach the next one; the first that holds is right.
    following = torch.cat([ascending[..., 1:], torch.full_like(ascending[..., :1], torch.inf)], -1)
    first = (levels <= following).int().argmax(-1, keepdim=True)
    return torch.maximum(fixed, levels.gather(-1, first))


def _certain(passes: Sequence[Tensor], total: int) -> Tensor:
    pairs = [bounds(p.double().mean(-2), p.shape[-2], total) for p in passes]
    low, high = (torch.stack(side, -1) for side in zip(*pairs, strict=True))
    best = low.argmax(-1, keepdim=True)
    others = high.scatter(-1, best, -torch.inf).amax(-1)
    return low.gather(-1, best).squeeze(-1) > others


def _likely(passes: Sequence[Tensor], total: int) -> Tensor:
    """The standard error of s_i − s_j is √((σ_i² + σ_j²)(1/k − 1/K)): K of them are a population, k a sample."""
    means = [p.double().mean(-2) for p in passes]
    found = torch.stack([scores(mean) for mean in means], -1)
    spread = torch.stack(
        [slopes(p.double(), mean).var(-1) for p, mean in zip(passes, means, strict=True)], -1
    )
    best = found.argmax(-1, keepdim=True)
    gaps = found.gather(-1, best) - found
    remaining = 1 / passes[0].shape[-2] - 1 / total
    errors = ((spread + spread.gather(-1, best)) * remaining).sqrt()
    return (gaps > SURE * errors).scatter(-1, best, torch.ones_like(best, dtype=torch.bool)).all(-1)
