"""What each method of an ensemble minimises, in plain loops over members and rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Terms = dict[str, float]


def _probabilities(row: Tensor, warmth: float = 1.0) -> list[float]:
    powers = [math.exp(float(z) / warmth) for z in row]
    return [p / sum(powers) for p in powers]


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def loss(row: Tensor, label: Any, problem: str) -> float:
    """The loss of one row of logits."""
    if problem == "regression":
        return (float(row[0]) - float(label)) ** 2
    if problem == "multi_label_classification":
        terms = [
            -math.log(_sigmoid(float(z)) if yes > 0.5 else _sigmoid(-float(z)))
            for z, yes in zip(row, label, strict=True)
        ]
        return sum(terms) / len(terms)
    return -math.log(_probabilities(row)[int(label)])


def task(logits: Tensor, labels: Tensor, problem: str) -> float:
    """(1/M) Σ_j task(z_j, y)."""
    rows = [loss(z, y, problem) for member in logits for z, y in zip(member, labels, strict=True)]
    return sum(rows) / len(rows)


def kl(first: Tensor, second: Tensor, problem: str, warmth: float = 1.0) -> float:
    """KL of two rows of logits, softened."""
    if problem == "regression":
        return (float(first[0]) - float(second[0])) ** 2 / 2
    if problem == "multi_label_classification":
        total = 0.0
        for a, b in zip(first, second, strict=True):
            p, q = _sigmoid(float(a) / warmth), _sigmoid(float(b) / warmth)
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        return total
    p, q = _probabilities(first, warmth), _probabilities(second, warmth)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def _distance(teachers: list[Tensor], logits: Tensor, problem: str, temperature: float) -> float:
    warmth = 1.0 if problem == "regression" else temperature
    rows = [
        warmth**2 * kl(t, z, problem, warmth)
        for teacher, member in zip(teachers, logits, strict=True)
        for t, z in zip(teacher, member, strict=True)
    ]
    return sum(rows) / len(rows)


def camero(logits: Tensor, labels: Tensor, problem: str, alpha: float) -> Terms:
    mean = logits.mean(0)
    rows = [
        kl(z, m, problem) + kl(m, z, problem) for member in logits for z, m in zip(member, mean, strict=True)
    ]
    return {"task": task(logits, labels, problem), "consistency": alpha * sum(rows) / len(rows)}


def alone(logits: Tensor, labels: Tensor, problem: str, alpha: float) -> Terms:
    return {"task": task(logits, labels, problem)}


def one(logits: Tensor, labels: Tensor, problem: str, alpha: float) -> Terms:
    mean = logits.mean(0)
    found = _distance([mean] * len(logits), logits, problem, 3.0)
    own = [loss(z, y, problem) for z, y in zip(mean, labels, strict=True)]
    return {
        "task": task(logits, labels, problem),
        "mean_task": sum(own) / len(own),
        "distillation": alpha * found,
    }


def codistillation(logits: Tensor, labels: Tensor, problem: str, alpha: float) -> Terms:
    others = [torch.stack([z for k, z in enumerate(logits) if k != j]).mean(0) for j in range(len(logits))]
    return {
        "task": task(logits, labels, problem),
        "distillation": alpha * _distance(others, logits, problem, 1.0),
    }


def gradient_of_distillation(name: str, logits: Tensor) -> Tensor:
    """d/dz of the distillation of single labels with α = 1, teachers held still: T (q − p) / (M B)."""
    members, rows, _ = logits.shape
    warmth = 3.0 if name == "one" else 1.0
    found = torch.zeros_like(logits)
    for j in range(members):
        kept = [z for k, z in enumerate(logits) if name == "one" or k != j]
        teacher = torch.stack(kept).mean(0)
        for row in range(rows):
            p = torch.tensor(_probabilities(teacher[row], warmth), dtype=logits.dtype)
            q = torch.tensor(_probabilities(logits[j, row], warmth), dtype=logits.dtype)
            found[j, row] = warmth * (q - p) / (members * rows)
    return found


TERMS: dict[str, Callable[..., Terms]] = {
    "camero": camero,
    "shared": alone,
    "single": alone,
    "separate": alone,
    "mc_dropout": alone,
    "batchensemble": alone,
    "one": one,
    "codistillation": codistillation,
}


def _answer(row: Tensor, problem: str, warmth: float) -> list[float]:
    """μ(z/T) of one row."""
    if problem == "regression":
        return [float(row[0])]
    if problem == "multi_label_classification":
        return [_sigmoid(float(z) / warmth) for z in row]
    return _probabilities(row, warmth)


def _entropy(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -p * math.log(p) - (1 - p) * math.log(1 - p)


def distance(target: list[float], row: Tensor, problem: str, warmth: float) -> float:
    """T² (the task's own loss of z/T with a soft label, less the least that it can be)."""
    if problem == "regression":
        return (float(row[0]) - target[0]) ** 2
    if problem == "multi_label_classification":
        terms = []
        for t, z in zip(target, row, strict=True):
            q = _sigmoid(float(z) / warmth)
            terms.append(-t * math.log(q) - (1 - t) * math.log(1 - q) - _entropy(t))
        return warmth**2 * sum(terms) / len(terms)
    q = _probabilities(row, warmth)
    return warmth**2 * sum(t * math.log(t / a) for t, a in zip(target, q, strict=True) if t > 0)


def _learnt(
    logits: Tensor, targets: list[list[float]], labels: Tensor, labelled: Tensor, problem: str, mixture: float,
    warmth: float,
) -> Terms:  # fmt: skip
    """One head's two terms over a batch in which some rows have no label."""
    first = second = 0.0
    for z, t, y, known in zip(logits, targets, labels, labelled, strict=True):
        first += (1 - mixture) * loss(z, y, problem) if known else 0.0
        second += (mixture if known else 1.0) * distance(t, z, problem, warmth)
    return {"task": first / len(logits), "distillation": second / len(logits)}


def distilled(
    logits: Tensor, labels: Tensor, problem: str, teachers: Tensor, labelled: Tensor, mixture: float, warmth: float
) -> Terms:  # fmt: skip
    targets = []
    for row in range(logits.shape[1]):
        told = [_answer(teacher[row], problem, warmth) for teacher in teachers]
        targets.append([sum(column) / len(told) for column in zip(*told, strict=True)])
    return _learnt(logits[0], targets, labels, labelled, problem, mixture, warmth)


def hydra(
    logits: Tensor, labels: Tensor, problem: str, teachers: Tensor, labelled: Tensor, mixture: float, warmth: float
) -> Terms:  # fmt: skip
    heads = [
        _learnt(z, [_answer(row, problem, warmth) for row in t], labels, labelled, problem, mixture, warmth)
        for z, t in zip(logits, teachers, strict=True)
    ]
    return {name: sum(head[name] for head in heads) / len(heads) for name in ("task", "distillation")}


def greedy_soup(scores: list[float], table: dict[frozenset[int], float]) -> set[int]:
    """Recipe 1 of model soups: the best first, each other one where the mean with it scores no lower."""
    left, taken = set(range(len(scores))), set()
    while left:
        j = max(sorted(left), key=lambda i: scores[i])
        left.remove(j)
        if not taken or table[frozenset(taken | {j})] >= table[frozenset(taken)]:
            taken.add(j)
    return taken


TAUGHT = {"distilled": distilled, "hydra": hydra}
TERMS |= dict.fromkeys(("soup", "greedy_soup", "swa", "deni", "lora", "singular"), alone)
