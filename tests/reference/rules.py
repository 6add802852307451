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


def calibrate(
    params: Arrays,
    weights: Sequence[float],
    grams: Arrays | None,
    crosses: Arrays | None,
    ridge: float = 0.3,
    **_: Any,
) -> Array:
    mean = average(params, weights)
    if grams is None or crosses is None:
        return mean
    width = params[0].shape[1]
    left, right = np.zeros((width, width)), np.zeros((width, params[0].shape[0]))
    for weight, gram, cross, parameter in zip(weights, grams, crosses, params, strict=True):
        counted = weight / np.sqrt((gram**2).sum())
        left += counted * gram
        right += counted * cross @ parameter.T
    pull = ridge * np.trace(left) / width
    return np.linalg.solve(left + pull * np.eye(width), right + pull * mean.T).T


def regmean(
    params: Arrays,
    weights: Sequence[float],
    grams: Arrays | None,
    alpha: float = 1.0,
    ridge: float = 0.01,
    scale_grams: str = "trace",
    **_: Any,
) -> Array:
    mean = average(params, weights)
    if grams is None:
        return mean
    if scale_grams == "trace":
        grams = [gram / np.trace(gram) for gram in grams]
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


def as_one(changes: Arrays, weights: Sequence[float], then: str) -> Array:
    if then in ("average", "sum"):
        return average(changes, weights) * (1.0 if then == "average" else sum(weights))
    return entry_by_entry(changes[0].shape, lambda at: elected(changes, weights, at, mean=then == "ties"))


def elected(changes: Arrays, weights: Sequence[float], at: tuple[int, ...], *, mean: bool = True) -> float:
    direction = sum(w * c[at] for w, c in zip(weights, changes, strict=True))
    agree = [(w, c[at]) for w, c in zip(weights, changes, strict=True) if w * c[at] * direction > 0]
    return sum(w * c for w, c in agree) / (sum(w for w, _ in agree) if mean else 1.0) if agree else 0.0


def ties(
    params: Arrays,
    weights: Sequence[float],
    base: Array,
    density: float = 0.2,
    then: str = "mean",
    scale: float = 1.0,
    **_: Any,
) -> Array:
    changes = [trimmed(p - base, density) for p in params]
    return base + scale * as_one(changes, weights, "ties" if then == "mean" else "ties_sum")


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
    return base + scale * as_one(changes, weights, then)


def slerp(params: Arrays, weights: Sequence[float], straight: float = 1.0, **_: Any) -> Array:
    first, second = params
    t = weights[1] / sum(weights)
    lengths = math.sqrt(float((first**2).sum()) * float((second**2).sum()))
    if lengths == 0:
        return (1 - t) * first + t * second
    angle = math.acos(max(-1.0, min(1.0, float((first * second).sum()) / lengths)))
    if math.sin(angle) < 1e-6 or abs(float((first * second).sum()) / lengths) > straight:
        return (1 - t) * first + t * second
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


def having_a_say(params: Arrays, weights: Sequence[float], base: Array) -> tuple[Arrays, Sequence[float]]:
    """Task vectors and weights of the sources whose weight is not 0."""
    kept = [(p - base, w) for p, w in zip(params, weights, strict=True) if w != 0]
    return [change for change, _ in kept], [weight for _, weight in kept]


def regression(changes: Arrays, weights: Sequence[float], grams: Arrays, prior: Array) -> Array:
    """(Σ λ τ (G + P/Σλ)) (Σ λ (G + P/Σλ))⁻¹, whatever all tasks share pulling towards their mean."""
    whole = sum(weights)
    left = sum(w * c @ (g + prior / whole) for c, g, w in zip(changes, grams, weights, strict=True))
    right = sum(w * (g + prior / whole) for g, w in zip(grams, weights, strict=True))
    return np.linalg.solve(right.T, left.T).T


def actmerge(
    params: Arrays, weights: Sequence[float], base: Array, ridge: float = 0.1, **_: Any
) -> Array:
    changes, shares = having_a_say(params, weights, base)
    return base + with_ridge(changes, shares, [c.T @ c for c in changes], ridge)


def wudi(params: Arrays, weights: Sequence[float], base: Array, ridge: float = 1e-2, **_: Any) -> Array:
    changes, shares = having_a_say(params, weights, base)
    grams = [c.T @ c / max(float((c**2).sum()), 1e-300) for c in changes]
    return base + with_ridge(changes, shares, grams, ridge)


def with_ridge(changes: Arrays, weights: Sequence[float], grams: Arrays, ridge: float) -> Array:
    width = changes[0].shape[1]
    total = sum(w * g for g, w in zip(grams, weights, strict=True))
    pull = ridge * float(np.trace(total)) / width
    if pull == 0:
        return np.zeros_like(changes[0])
    return regression(changes, weights, grams, pull * np.eye(width))


def ace(
    params: Arrays,
    weights: Sequence[float],
    base: Array,
    ridge: float = 4e-2,
    spread: float = 0.3,
    level: float = 0.3,
    **_: Any,
) -> Array:
    changes, shares = having_a_say(params, weights, base)
    out, width = base.shape
    covariances = [
        sum(np.outer(row - change.mean(axis=0), row - change.mean(axis=0)) for row in change)
        for change in changes
    ]
    norms = [float(np.linalg.norm(change)) for change in changes]
    if np.std([math.log(n) for n in norms if n > 0] or [0.0]) > spread:
        covariances = [c / np.trace(c) if np.trace(c) > 0 else c for c in covariances]
    total = sum(w * c for c, w in zip(covariances, shares, strict=True))
    if np.trace(total) == 0:
        merged = average(changes, shares)
    else:
        prior = ridge / 2 * (np.diag(np.diag(total)) + np.trace(total) / width * np.eye(width))
        merged = regression(changes, shares, covariances, prior)
    left, values, right = svd(merged)
    count = math.ceil(round(level * min(out, width), 9))
    new = [float(values[:count].mean()) if i < count else float(v) for i, v in enumerate(values)]
    return base + together(left, [n if v > 0 else 0.0 for n, v in zip(new, values, strict=True)], right)


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """Left directions in columns, values, right directions in rows; values that are rounding are 0."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left, np.where(values > 1e-6 * values[0], values, 0.0), right


def together(left: Array, values: Sequence[float], right: Array) -> Array:
    return sum(
        (v * np.outer(left[:, i], right[i]) for i, v in enumerate(values)),
        start=np.zeros((len(left), right.shape[1])),
    )


def nearest_orthonormal(columns: Array) -> Array:
    """P Qᵀ of C = P D Qᵀ, without directions whose D is rounding."""
    left, values, right = np.linalg.svd(columns, full_matrices=False)
    return left @ np.diag((values > 1e-5 * values[0]).astype(float)) @ right


def strongest(matrix: Array, count: int) -> tuple[Array, list[float], Array]:
    """The first directions, in columns, without those that are rounding."""
    left, values, right = svd(matrix)
    real = [i for i in range(min(count, len(values))) if values[i] > 0]
    return left[:, real], [float(values[i]) for i in real], right[real].T


def joined(parts: list[tuple[Array, list[float], Array]], shape: tuple[int, int]) -> Array | None:
    """All left directions orthogonal together, all right ones, and their values."""
    values = [v for _, some, _ in parts for v in some]
    if not values:
        return None
    left, right = (nearest_orthonormal(np.concatenate([p[side] for p in parts], axis=1)) for side in (0, 2))
    return left, values, right


def tsv(params: Arrays, weights: Sequence[float], base: Array, scale: float = 1.0, **_: Any) -> Array:
    changes, shares = having_a_say(params, weights, base)
    count = max(1, min(base.shape) // len(changes))
    found = joined([strongest(change, count) for change in changes], base.shape)
    if found is None:
        return base.copy()
    left, _, right = found
    values = [w * v for change, w in zip(changes, shares, strict=True) for v in strongest(change, count)[1]]
    return base + scale * together(left, values, right.T)


def iso(
    params: Arrays,
    weights: Sequence[float],
    base: Array,
    common: float = 1.0,
    scale: float = 1.0,
    **_: Any,
) -> Array:
    changes, shares = having_a_say(params, weights, base)
    scaled = [w * change for change, w in zip(changes, shares, strict=True)]
    rank, tasks = min(base.shape), len(scaled)
    own = min(math.floor((1 - common) * rank / tasks + 0.5), rank // tasks)
    parts = [strongest(sum(scaled), rank - own * tasks)]
    if own:
        first = parts[0][0]
        parts += [strongest(change - first @ first.T @ change, own) for change in scaled]
    found = joined(parts, base.shape)
    if found is None:
        return base.copy()
    left, values, right = found
    return base + scale * sum(values) / rank * together(left, [1.0] * left.shape[1], right.T)


def svc(
    params: Arrays,
    weights: Sequence[float],
    base: Array,
    alpha: float = 1.0,
    scale: float = 0.4,
    **_: Any,
) -> Array:
    changes, shares = having_a_say(params, weights, base)
    total = scale * sum(w * change for change, w in zip(changes, shares, strict=True))
    left, values, right = svd(total)
    new = []
    for i, value in enumerate(values):
        merged, counted = left[:, i] @ total, 0.0
        for change, weight in zip(changes, shares, strict=True):
            own = left[:, i] @ change
            part = float(merged @ own) / float(own @ own) if own @ own > 0 else 0.0
            counted += weight * max(alpha / len(changes), part)
        new.append(value * sum(shares) / counted if value else 0.0)
    return base + together(left, new, right)


def cart(
    params: Arrays, weights: Sequence[float], keep: float = 0.08, scale: float = 1.0, **_: Any
) -> Array:
    mean = average(params, weights)
    result = mean.copy()
    for parameter, weight in zip(params, weights, strict=True):
        left, values, right = strongest(parameter - mean, math.ceil(round(keep * min(mean.shape), 9)))
        result += scale * weight * together(left, values, right.T)
    return result


def breadcrumbs(
    params: Arrays,
    weights: Sequence[float],
    base: Array,
    density: float = 0.15,
    outliers: float = 0.006,
    then: str = "sum",
    scale: float = 0.2,
    **_: Any,
) -> Array:
    changes = []
    for parameter in params:
        change = trimmed(parameter - base, density)
        ranked = sorted((abs(v) for v in (parameter - base).flat), reverse=True)
        count = math.floor(round(outliers * len(ranked), 9))
        most = ranked[count - 1] if count else math.inf
        changes.append(np.where(np.abs(change) >= most, 0.0, change))
    return base + scale * as_one(changes, weights, then)


def della(
    params: Arrays,
    weights: Sequence[float],
    base: Array,
    draws: Arrays,
    drop: float = 0.5,
    epsilon: float = 0.15,
    then: str = "ties",
    scale: float = 1.0,
    **_: Any,
) -> Array:
    changes = []
    for parameter, draw in zip(params, draws, strict=True):
        change = parameter - base
        for at in np.ndindex(*change.shape):
            row = (parameter - base)[at[:-1]]
            greater = sum(1 for other in np.atleast_1d(row).flat if abs(other) > abs(parameter[at] - base[at]))
            chance = min(max(drop - epsilon / 2 + epsilon * greater / row.size, 0.0), 0.999)
            change[at] = 0.0 if draw[at] < chance else change[at] / (1 - chance)
        changes.append(change)
    return base + scale * as_one(changes, weights, then)


def model_stock(params: Arrays, weights: Sequence[float], base: Array, **_: Any) -> Array:
    changes = [p - base for p in params]
    cosines, counted = 0.0, 0.0
    for i, one in enumerate(changes):
        for j, other in enumerate(changes):
            if i < j:
                lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
                pair = weights[i] * weights[j]
                cosines += pair * (float((one * other).sum()) / lengths if lengths else 0.0)
                counted += pair
    mean = average(params, weights)
    if counted == 0:
        return mean
    cosine = max(cosines / counted, 0.0)
    count = sum(weights) ** 2 / sum(w * w for w in weights)
    share = count * cosine / (1 + (count - 1) * cosine)
    return share * mean + (1 - share) * base


def karcher(params: Arrays, weights: Sequence[float], **_: Any) -> Array:
    """Moves a vector along the sphere, one whole tensor at a time."""
    lengths = [float(np.linalg.norm(p)) for p in params]
    whole = sum(weights)
    directed = [(p / n, w) for p, n, w in zip(params, lengths, weights, strict=True) if n > 0 and w > 0]
    if not directed:
        return average(params, weights)
    straight = sum(w * d for d, w in directed) / sum(w for _, w in directed)
    if np.linalg.norm(straight) < 1e-7:
        return average(params, weights)
    point = straight / np.linalg.norm(straight)
    if any(float((d * point).sum()) <= 1e-7 for d, _ in directed):
        return average(params, weights)
    for _round in range(2000):
        step = np.zeros_like(point)
        for direction, weight in directed:
            angle = math.acos(min(1.0, float((direction * point).sum())))
            if angle > 1e-12:
                step += weight * angle / math.sin(angle) * (direction - math.cos(angle) * point)
        step /= sum(w for _, w in directed)
        size = float(np.linalg.norm(step))
        if size < 1e-13:
            break
        point = math.cos(size) * point + math.sin(size) * step / size
    return point * sum(w * n for n, w in zip(lengths, weights, strict=True)) / whole


def lines(
    params: Arrays,
    weights: Sequence[float],
    base: Array,
    depth: float,
    alpha: float = 1.0,
    beta: float = 0.5,
    **_: Any,
) -> Array:
    scale = alpha / sum(weights) + beta * depth
    return task_arithmetic(params, weights, base, scale=scale)


REFERENCES: dict[str, Callable[..., Array]] = {
    "ace": ace,
    "actmerge": actmerge,
    "average": average,
    "breadcrumbs": breadcrumbs,
    "cart": cart,
    "dare": dare,
    "della": della,
    "fisher": fisher,
    "iso": iso,
    "karcher": karcher,
    "lines": lines,
    "model_stock": model_stock,
    "regmean": regmean,
    "calibrate": calibrate,
    "slerp": slerp,
    "svc": svc,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "tsv": tsv,
    "wudi": wudi,
}
