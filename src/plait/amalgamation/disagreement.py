"""Labels of one name that do not look like one label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

from plait.amalgamation.labels import LabelSpace

FEWEST = 20
LEAST_AGREEMENT = 0.2
LEAST_RISE = 0.2
USUAL = 0.9


def disagreement(posteriors: Sequence[Tensor], space: LabelSpace, teachers: Sequence[str]) -> list[str]:
    """Returns a warning for each label that two teachers share and use for different texts.

    A_i(c) = the half of {x: p_i(c|x) > 1/2} on which teacher i is surest,  a_ij = mean_{x ∈ A_i} p_j(c|x)
    r_ij = (a_ij − ā_j) / (1 − ā_j),  ā_j = mean_x p_j(c|x)
    κ_ij = r_ij / r_ii;  warned of where (κ_ij + κ_ji) / 2 < 0.2

    κ is 1 where the other agrees as far as the teacher itself is sure, and 0 where it knows no more of these texts than
    of any. Only the surest half counts because a teacher also gives its labels to texts of labels it has never seen.
    No evidence is a direction with fewer than 20 such texts, one where the other has the label for nine texts in ten,
    and one where the teacher itself is hardly surer there than anywhere (r_ii < 0.2).

    Args:
        posteriors: p_i, each teacher's distribution over its own labels, on the same texts.
        space: the union.
        teachers: their names.
    """
    return [
        f"{teachers[i]} and {teachers[j]} both have the label {space.names[label]!r} but use it for different texts "
        f"(agreement {agreement:.2f}; 1 is full, 0 is chance): if they mean different things, give one another name "
        f"with --rename '{teachers[j]}.{_own(space, j, label)}=NAME'"
        for label, i, j in _shared(space)
        if (agreement := _agreement(*(_column(posteriors[at], space, at, label) for at in (i, j))))
        < LEAST_AGREEMENT
    ]


def _own(space: LabelSpace, teacher: int, label: int) -> str:
    """Returns what the teacher itself calls a label of the union."""
    own = space.own[teacher] if space.own else ()
    return own[space.columns[teacher].index(label)] if own else space.names[label]


def _column(posterior: Tensor, space: LabelSpace, teacher: int, label: int) -> Tensor:
    """Returns what a teacher gives one label of the union, on all texts."""
    own = [at for at, place in enumerate(space.columns[teacher]) if place == label]
    return posterior[:, own].float().sum(1)


def _shared(space: LabelSpace) -> Iterator[tuple[int, int, int]]:
    for label in range(len(space)):
        having = [at for at, columns in enumerate(space.columns) if label in columns]
        for i, j in combinations(having, 2):
            yield label, i, j


def _agreement(first: Tensor, second: Tensor) -> float:
    found = [k for k in (_seconded(first, second), _seconded(second, first)) if k is not None]
    return sum(found) / len(found) if found else 1.0


def _seconded(sure: Tensor, other: Tensor) -> float | None:
    """Returns κ of the second teacher on the texts that the first is sure of; None where that is no evidence."""
    chosen = torch.nonzero(sure > 0.5)[:, 0]
    if len(chosen) < FEWEST or max(float(sure.double().mean()), float(other.double().mean())) > USUAL:
        return None
    surest = chosen[sure[chosen].argsort(descending=True, stable=True)[: (len(chosen) + 1) // 2]]
    own = _risen(sure, surest)
    return None if own < LEAST_RISE else _risen(other, surest) / own


def _risen(given: Tensor, rows: Tensor) -> float:
    """Returns r: how far a label's probability on some texts is above that on all, in shares of what is possible."""
    usual = float(given.double().mean())
    return (float(given[rows].double().mean()) - usual) / (1 - usual)
