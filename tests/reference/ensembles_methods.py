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
