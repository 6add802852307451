"""The union of the teachers' labels, and labels of one name that do not look like one label."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from plait.errors import RecipeError, did_you_mean, listed
from plait.label_names import placeholders

logger = logging.getLogger("plait")

Rename = Mapping[str, str]
Own = tuple[str, str]  # a teacher and its own name for a label


@dataclass(frozen=True)
class LabelSpace:
    """The labels that the student has.

    Attributes:
        names: The labels of the union, in order.
        columns: For each teacher, the positions of its labels in the union; two of them may be equal.
        teachers: The teachers' names, in order.
        own: For each teacher, its own names of its labels.
    """

    names: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]
    teachers: tuple[str, ...]
    own: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def pad(self, teacher: int, probabilities: Tensor) -> Tensor:
        """Returns a teacher's [n, c] as [n, C]: at the positions of its labels, added up where they are one; else 0."""
        columns = torch.tensor(self.columns[teacher], device=probabilities.device)
        return probabilities.new_zeros(len(probabilities), len(self)).index_add(1, columns, probabilities)

    def known(self, teacher: int) -> Tensor:
        """Returns the labels that a teacher has, as a mask [C]."""
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[list(self.columns[teacher])] = True
        return mask


def union(labels: Mapping[str, Sequence[str]], rename: Rename | None = None) -> LabelSpace:
    """Returns the union of the teachers' labels, in order of first appearance.

    Equal names are one label. Placeholders (`LABEL_0`, `0`, …) of two or more teachers say nothing: they become
    `teacher.LABEL_0`, with a warning. Names that differ only in case, spaces or punctuation stay apart, with a warning.

    Args:
        labels: each teacher's label names in the order of its head.
        rename: `teacher.Label` to another name; two labels of one name add up, within one teacher too.

    Raises:
        RecipeError: When a renamed teacher or label is unknown, a new name is empty, or fewer than two labels remain.
    """
    renamed = _renamed(labels, rename or {})
    names_of = {
        teacher: [renamed.get((teacher, name), name) for name in names] for teacher, names in labels.items()
    }
    for teacher in _anonymous(labels, renamed):
        names_of[teacher] = [renamed.get((teacher, name), f"{teacher}.{name}") for name in labels[teacher]]
    order = {name: at for at, name in enumerate(dict.fromkeys(n for names in names_of.values() for n in names))}
    if len(order) < 2:
        raise RecipeError(
            f"the teachers have {len(order)} label together ({listed(order) or 'none'}); a student needs at least 2"
        )
    _warn_of_twins(labels, names_of)
    columns = tuple(tuple(order[name] for name in names) for names in names_of.values())
    return LabelSpace(tuple(order), columns, tuple(labels), tuple(map(tuple, labels.values())))


def _renamed(labels: Mapping[str, Sequence[str]], rename: Rename) -> dict[Own, str]:
    renamed, problems = {}, []
    known = {f"{teacher}.{name}": (teacher, name) for teacher, names in labels.items() for name in names}
    for key, new in rename.items():
        if not new.strip():
            problems.append(f"the new name of {key!r} is empty: write teacher.Label=Name")
        elif key not in known:
            problems.append(_unknown(key, labels, known))
        else:
            renamed[known[key]] = new.strip()
    if problems:
        raise RecipeError(f"rename: {listed(problems)}")
    return renamed


def _unknown(key: str, labels: Mapping[str, Sequence[str]], known: Mapping[str, Own]) -> str:
    """Returns what is wrong with a key; both names may contain dots, so teachers are tried, the longest first."""
    for teacher in sorted(labels, key=len, reverse=True):
        if key.startswith(f"{teacher}."):
            label = key[len(teacher) + 1 :]
            return f"teacher {teacher!r} has no label {label!r}{did_you_mean(label, labels[teacher])}"
    if "." not in key:
        return f"{key!r} names no teacher's label{did_you_mean(key, known)}"
    teacher = key.partition(".")[0]
    return f"{key!r}: unknown teacher {teacher!r}{did_you_mean(teacher, labels)}"


def _anonymous(labels: Mapping[str, Sequence[str]], renamed: Mapping[Own, str]) -> list[str]:
    """Returns the teachers whose placeholders would be taken for each other's; says so."""
    nameless = [
        teacher
        for teacher, names in labels.items()
        if placeholders(names) and any((teacher, name) not in renamed for name in names)
    ]
    if len(nameless) == 1:
        logger.info(
            "%s does not name its labels: name them with --rename %s.%s=NAME",
            nameless[0],
            nameless[0],
            labels[nameless[0]][0],
        )
    if len(nameless) < 2:
        return []
    logger.warning(
        "%s do not name their labels: they are taken for different ones, named %s.%s and so on; "
        "name them with --rename %s.%s=NAME",
        " and ".join(nameless), nameless[0], labels[nameless[0]][0], nameless[0], labels[nameless[0]][0],
    )  # fmt: skip
    return nameless


def _warn_of_twins(labels: Mapping[str, Sequence[str]], given: Mapping[str, Sequence[str]]) -> None:
    for (one, first), (other, second, its_word) in _twins(labels, given):
        logger.warning(
            "%s's %r and %s's %r are taken for two labels; if they are one: --rename %s",
            one, first, other, second, f"'{other}.{its_word}={first}'",
        )  # fmt: skip


def _twins(
    labels: Mapping[str, Sequence[str]], given: Mapping[str, Sequence[str]]
) -> Iterator[tuple[tuple[str, str], tuple[str, str, str]]]:
    """Yields pairs of labels of two teachers that differ in spelling alone, each pair of spellings once."""
    seen: set[frozenset[str]] = set()
    for one, other in combinations(given, 2):
        spelled = {_spelled(name): name for name in given[one]}
        both = {*given[one]} & {*given[other]}
        for second, its_word in zip(given[other], labels[other], strict=True):
            first = spelled.get(_spelled(second), second)
            pair = frozenset((first, second))
            if len(pair) == 2 and pair not in seen and not pair & both:
                seen.add(pair)
                yield (one, first), (other, second, its_word)


def _spelled(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum()) or name


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
    words = space.own[teacher] if space.own else ()
    return words[space.columns[teacher].index(label)] if words else space.names[label]


def _column(posterior: Tensor, space: LabelSpace, teacher: int, label: int) -> Tensor:
    """Returns what a teacher gives one label of the union, on all texts."""
    places = [at for at, place in enumerate(space.columns[teacher]) if place == label]
    return posterior[:, places].float().sum(1)


def _shared(space: LabelSpace) -> Iterator[tuple[int, int, int]]:
    for label in range(len(space)):
        having = [at for at, columns in enumerate(space.columns) if label in columns]
        for i, j in combinations(having, 2):
            yield label, i, j


def _agreement(first: Tensor, second: Tensor) -> float:
    kappas = [k for k in (_seconded(first, second), _seconded(second, first)) if k is not None]
    return sum(kappas) / len(kappas) if kappas else 1.0


def _seconded(sure: Tensor, other: Tensor) -> float | None:
    """Returns κ of the second teacher on the texts that the first is sure of; None where that is no evidence."""
    chosen = torch.nonzero(sure > 0.5)[:, 0]
    if len(chosen) < FEWEST or max(float(sure.double().mean()), float(other.double().mean())) > USUAL:
        return None
    surest = chosen[sure[chosen].argsort(descending=True, stable=True)[: (len(chosen) + 1) // 2]]
    rise = _risen(sure, surest)
    return None if rise < LEAST_RISE else _risen(other, surest) / rise


def _risen(given: Tensor, rows: Tensor) -> float:
    """Returns r: how far a label's probability on some texts is above that on all, in shares of what is possible."""
    usual = float(given.double().mean())
    return (float(given[rows].double().mean()) - usual) / (1 - usual)
