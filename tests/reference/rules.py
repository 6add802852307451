"""Every merge rule once more: float64, one entry at a time, written from the formula. Slow, obvious, on its own.

Each takes what the rule takes (params as a list of arrays, importances already of the parameter's shape) and, instead
of thresholds and typical importances, finds out for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any
Arrays = Sequence[Array]


def entry_by_entry(shape: tuple[int, ...], value: Callable[[tuple[int, ...]], float]) -> Array:
    result = np.zeros(shape, dtype=np.float64)
    for place in np.ndindex(*shape):
        result[place] = value(place)
    return result


def average(params: Arrays, weights: Sequence[float], **_: Any) -> Array:
    total = math.fsum(weights)
    return entry_by_entry(
        params[0].shape,
        lambda at: math.fsum(w * float(p[at]) for w, p in zip(weights, params, strict=True)) / total,
    )


def fisher(
    params: Arrays, weights: Sequence[float], importances: Arrays, floor: float = 1e-6, **_: Any
) -> Array:
    typical = max(float(f.mean()) for f in importances)

    def value(at: tuple[int, ...]) -> float:
        informed = [max(float(f[at]), floor * typical) for f in importances]
        if typical == 0 or sum(informed) == 0:
            informed = [1.0 for _ in importances]
        shares = [w * f for w, f in zip(weights, informed, strict=True)]
        return math.fsum(s * float(p[at]) for s, p in zip(shares, params, strict=True)) / math.fsum(shares)

    return entry_by_entry(params[0].shape, value)


def regmean(
    params: Arrays,
    weights: Sequence[float],
    grams: Arrays | None,
    alpha: float = 0.9,
    ridge: float = 1e-6,
    **_: Any,
) -> Array:
    mean = average(params, weights)
    if grams is None:
        return mean
    width = params[0].shape[1]
    left, right = np.zeros((width, width)), np.zeros((width, params[0].shape[0]))
    for weight, gram, parameter in zip(weights, grams, params, strict=True):
        shrunk = np.array(
            [[gram[i, j] * (1.0 if i == j else alpha) * weight for j in range(width)] for i in range(width)]
        )
        left += shrunk
        right += shrunk @ parameter.T
    pull = ridge * np.trace(left) / width
    return np.linalg.solve(left + pull * np.eye(width), right + pull * mean.T).T


def task_arithmetic(
    params: Arrays, weights: Sequence[float], base: Array, scale: float = 0.4, **_: Any
) -> Array:
    return entry_by_entry(
        base.shape,
        lambda at: (
            float(base[at])
            + scale * sum(w * (p[at] - base[at]) for w, p in zip(weights, params, strict=True))
        ),
    )


def trimmed(change: Array, density: float) -> Array:
    ranked = sorted((abs(v) for v in change.flat), reverse=True)
    k = math.ceil(round(density * len(ranked), 9))
    least = ranked[k - 1] if k else math.inf
    return np.where(np.abs(change) >= least, change, 0.0)


def elected(changes: Arrays, weights: Sequence[float], at: tuple[int, ...]) -> float:
    direction = sum(w * c[at] for w, c in zip(weights, changes, strict=True))
    agree = [(w, c[at]) for w, c in zip(weights, changes, strict=True) if w * c[at] * direction > 0]
    return sum(w * c for w, c in agree) / sum(w for w, _ in agree) if agree else 0.0


def ties(
    params: Arrays,
    weights: Sequence[float],
    base: Array,
    density: float = 0.2,
    scale: float = 1.0,
    **_: Any,
) -> Array:
    changes = [trimmed(p - base, density) for p in params]
    return entry_by_entry(base.shape, lambda at: base[at] + scale * elected(changes, weights, at))


def dare(
    params: Arrays,
    weights: Sequence[float],
    base: Array,
    draws: Arrays,
    drop: float = 0.5,
    then: str = "average",
    scale: float = 1.0,
    **_: Any,
) -> Array:
    changes = [np.where(d < drop, 0.0, (p - base) / (1 - drop)) for p, d in zip(params, draws, strict=True)]
    if then == "ties":
        return entry_by_entry(base.shape, lambda at: base[at] + scale * elected(changes, weights, at))
    return base + scale * average(changes, weights)


def slerp(params: Arrays, weights: Sequence[float], **_: Any) -> Array:
    first, second = params
    t = weights[1] / sum(weights)
    lengths = math.sqrt(float((first**2).sum()) * float((second**2).sum()))
    if lengths == 0:
        return (1 - t) * first + t * second
    angle = math.acos(max(-1.0, min(1.0, float((first * second).sum()) / lengths)))
    if math.sin(angle) < 1e-6:
        return (1 - t) * first + t * second
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


REFERENCES: dict[str, Callable[..., Array]] = {
    "average": average,
    "dare": dare,
    "fisher": fisher,
    "regmean": regmean,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
}
