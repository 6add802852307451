"""Every gate, target and objective once more: float64, one text at a time, from the formulas. Slow, obvious, alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Array = Any
Arrays = Sequence[Array]


def softmax(scores: Sequence[float]) -> list[float]:
    top = max(scores)
    powers = [math.exp(s - top) for s in scores]
    return [p / math.fsum(powers) for p in powers]


def entropy_of(p: Sequence[float]) -> float:
    return -math.fsum(v * math.log(v) for v in p if v > 0)


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def mean_of(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# What a teacher is worth on a text.


def muka(mean: Array, **_: Any) -> list[float]:
    return [1 - entropy_of(p) / math.log(len(p)) for p in mean]


def entropy(logits: Array, **_: Any) -> list[float]:
    return [1 - entropy_of(softmax(z)) / math.log(len(z)) for z in logits]


def energy(logits: Array, **_: Any) -> list[float]:
    return [max(z) + math.log(math.fsum(math.exp(v - max(z)) for v in z)) for z in logits]


def max_logit(logits: Array, **_: Any) -> list[float]:
    return [max(z) for z in logits]


def bald(mean: Array, expected_entropy: Array, **_: Any) -> list[float]:
    return [
        1 - max(entropy_of(p) - h, 0) / math.log(len(p)) for p, h in zip(mean, expected_entropy, strict=True)
    ]


def covariance_of(rows: Arrays, weights: Sequence[float]) -> Array:
    return sum(w * np.outer(r, r) for r, w in zip(rows, weights, strict=True)) / math.fsum(weights)


def inverse(covariance: Array, shrinkage: float, least: float) -> Array:
    width = len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / width * np.eye(width)
    values, vectors = np.linalg.eigh(shrunk)
    return sum(np.outer(v, v) / max(value, least) for value, v in zip(values, vectors.T, strict=True))


def mahalanobis(features: Array, logits: Array, shrinkage: float = 0.1, **_: Any) -> list[float]:
    weights = [max(w, 1e-6) for w in entropy(logits)]
    labels = [int(np.argmax(z)) for z in logits]
    centres = {}
    for label in set(labels):
        chosen = [(w, h) for w, h, found in zip(weights, features, labels, strict=True) if found == label]
        centres[label] = sum(w * h for w, h in chosen) / math.fsum(w for w, _ in chosen)
    middle = sum(features) / len(features)
    within = [h - centres[label] for h, label in zip(features, labels, strict=True)]
    corpus = covariance_of([h - middle for h in features], [1.0] * len(features))
    least = 1e-6 * np.trace(corpus) / len(corpus)
    shared = inverse(covariance_of(within, weights), shrinkage, least)
    background = inverse(corpus, shrinkage, least)
    scores = [
        (h - middle) @ background @ (h - middle) - min((h - c) @ shared @ (h - c) for c in centres.values())
        for h in features
    ]
    spread = math.sqrt(mean_of([(s - mean_of(scores)) ** 2 for s in scores]))
    same = spread <= 1e-9 * max(abs(s) for s in scores)
    return [0.0 if same else s / spread for s in scores]


def averaged(scores: Sequence[float], near: Array, neighbours: int) -> list[float]:
    return [mean_of([s, *(scores[int(k)] for k in row[:neighbours])]) for s, row in zip(scores, near, strict=True)]


def base(
    base: Array, near: Array, logits: Array, neighbours: int = 30, shrinkage: float = 0.1, **_: Any
) -> list[float]:
    return averaged(mahalanobis(base, logits, shrinkage), near, neighbours)


def vocabulary(
    drift: Sequence[float], tokens: Sequence[int], starts: Sequence[int], near: Array,
    neighbours: int = 10, smoothing: float = 0.1, **_: Any,
) -> list[float]:  # fmt: skip
    typical = math.fsum(d * d for d in drift) / max(math.fsum(drift), 1e-300)
    read = [d + smoothing * max(typical, 1e-38) for d in drift]
    count = [1 + sum(int(t) == v for t in tokens) for v in range(len(drift))]
    scores = []
    for begin, end in pairwise(starts):
        ratios = [
            math.log(read[int(v)] / math.fsum(read)) - math.log(count[int(v)] / sum(count))
            for v in tokens[int(begin) : int(end)]
        ]
        scores.append(mean_of(ratios) if ratios else 0.0)
    return averaged(scores, near, neighbours)


def standard_scores(column: Sequence[float]) -> list[float]:
    middle = mean_of(column)
    spread = math.sqrt(mean_of([(v - middle) ** 2 for v in column]))
    flat = spread <= 1e-12 * max(abs(v) for v in column)
    return [0.0 if flat else (v - middle) / spread for v in column]


def update(response: Array, near: Array, neighbours: int = 0, **_: Any) -> list[float]:
    columns = [standard_scores(column) for column in np.asarray(response).T]
    return averaged([mean_of(row) for row in zip(*columns, strict=True)], near, neighbours)


def auto(panel: Array, rounds: int = 50) -> Array:
    """Responsibilities [n, t] of expectation maximisation over standardised scores [n, t, g]."""
    n, teachers, gates = panel.shape
    s = np.array([[standard_scores(panel[:, i, g]) for g in range(gates)] for i in range(teachers)])
    r = np.array([softmax([math.fsum(s[i, :, x]) for i in range(teachers)]) for x in range(n)])
    for _ in range(rounds):
        weight, middle = [], np.zeros((teachers, gates))
        for g in range(gates):
            gaps = []
            for i in range(teachers):
                own = math.fsum(r[:, i] * s[i, g]) / max(math.fsum(r[:, i]), 1e-9)
                other = math.fsum((1 - r[:, i]) * s[i, g]) / max(math.fsum(1 - r[:, i]), 1e-9)
                spread = mean_of(r[:, i] * (s[i, g] - own) ** 2 + (1 - r[:, i]) * (s[i, g] - other) ** 2)
                gaps.append((own - other) / max(spread, 1e-6) if spread > 0 else 0.0)
                middle[i, g] = (own + other) / 2
            weight.append(mean_of(gaps))
        found = np.array([
            softmax([
                math.fsum(weight[g] * (s[i, g, x] - middle[i, g]) for g in range(gates)) for i in range(teachers)
            ])
            for x in range(n)
        ])  # fmt: skip
        settled = np.abs(found - r).max() < 1e-4
        r = found
        if settled:
            break
    return r


def strata(layers: Array, logits: Array, shrinkage: float = 0.1, lowest: int = 1, **_: Any) -> list[float]:
    count = len(layers[0])
    each = [mahalanobis(layers[:, at], logits, shrinkage) for at in range(min(lowest, count - 1), count)]
    return [mean_of(row) for row in zip(*each, strict=True)]


def oracle(labels: Sequence[int], known: Sequence[bool], **_: Any) -> list[float]:
    return [1.0 if y >= 0 and known[y] else 0.0 for y in labels]


GATES: dict[str, Callable[..., list[float]]] = {
    "base": base,
    "bald": bald,
    "energy": energy,
    "entropy": entropy,
    "mahalanobis": mahalanobis,
    "max_logit": max_logit,
    "muka": muka,
    "oracle": oracle,
    "strata": strata,
    "update": update,
    "vocabulary": vocabulary,
}

# What stands in for the label.


def pad(p: Sequence[float], columns: Sequence[int], width: int) -> list[float]:
    return [math.fsum(v for v, at in zip(p, columns, strict=True) if at == place) for place in range(width)]


def choice(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def margin(scores: Sequence[float]) -> float:
    ranked = sorted(scores, reverse=True)
    return 1.0 if len(ranked) == 1 else ranked[0] - ranked[1] + 1e-6


def hard(p: Arrays, scores: Array, columns: Sequence[Sequence[int]], width: int) -> Array:
    rows = []
    for at, s in enumerate(scores):
        i = choice(s)
        rows.append(pad(p[i][at], columns[i], width))
    return np.array(rows)


def soft(p: Arrays, scores: Array, columns: Sequence[Sequence[int]], width: int, temperature: float) -> Array:
    rows = []
    for at, s in enumerate(scores):
        weights = softmax([v / temperature for v in s])
        padded = [pad(p[i][at], columns[i], width) for i in range(len(p))]
        rows.append([math.fsum(w * q[c] for w, q in zip(weights, padded, strict=True)) for c in range(width)])
    return np.array(rows)


def consensus(
    p: Arrays, scores: Array, columns: Sequence[Sequence[int]], width: int, temperature: float = 1.0
) -> Array:
    """Bisection on one label's log-odds at a time until all derivatives of Σ_i KL(p_i ‖ q(·|L_i)) vanish."""
    rows = []
    for at, s in enumerate(scores):
        weights = softmax([v / temperature for v in s])
        u = [0.0] * width  # log q but for a constant
        padded = [pad(p[i][at], columns[i], width) for i in range(len(p))]
        for _ in range(4000):
            slope = [0.0] * width
            for i, own in enumerate(columns):
                inside = math.fsum(math.exp(u[c]) for c in set(own))
                for c in set(own):
                    slope[c] += math.exp(u[c]) / inside - padded[i][c]
            u = [max(v - g, -40.0) for v, g in zip(u, slope, strict=True)]
        q = softmax(u)
        worth = [math.fsum(w for w, own in zip(weights, columns, strict=True) if c in own) for c in range(width)]
        total = math.fsum(a * b for a, b in zip(q, worth, strict=True))
        rows.append([a * b / total for a, b in zip(q, worth, strict=True)])
    return np.array(rows)


def concat(logits: Arrays, columns: Sequence[Sequence[int]], width: int, temperature: float = 1.0) -> Array:
    places = [at for own in columns for at in own]
    rows = []
    for at in range(len(logits[0])):
        together = [v / temperature for z in logits for v in z[at]]
        rows.append(pad(softmax(together), places, width))
    return np.array(rows)


# What the student minimises.


def muka_loss(
    student_logits: Array,
    target: Array,
    weight: Sequence[float],
    temperature: float = 1.0,
    selected: float = 1.0,
    bootstrap: float = 0.0,
    **_: Any,
) -> dict[str, float]:
    pairs = []
    for z, p, v in zip(student_logits, target, weight, strict=True):
        own = softmax(z / temperature)
        goal = [(1 - bootstrap) * a + bootstrap * b for a, b in zip(p, own, strict=True)]
        pairs.append((kl(goal, own), v))
    easiest = sorted(pairs)[: max(1, round(selected * len(pairs)))]
    return {"divergence": mean_of([v * loss for loss, v in easiest])}


def vkd_loss(
    student_logits: Array,
    teacher_logits: Arrays,
    columns: Sequence[Sequence[int]],
    temperature: float = 1.0,
    **_: Any,
) -> dict[str, float]:
    target = concat(teacher_logits, columns, student_logits.shape[1], temperature)
    each = [kl(p, softmax(z / temperature)) for z, p in zip(student_logits, target, strict=True)]
    return {"divergence": temperature**2 * mean_of(each)}


def uhc_loss(
    student_logits: Array,
    teacher_logits: Arrays,
    columns: Sequence[Sequence[int]],
    temperature: float = 1.0,
    **_: Any,
) -> dict[str, float]:
    width, each = student_logits.shape[1], []
    for at, z in enumerate(student_logits):
        q = softmax(z / temperature)
        for logits, own in zip(teacher_logits, columns, strict=True):
            p = pad(softmax(logits[at] / temperature), own, width)
            inside = math.fsum(q[c] for c in set(own))
            each.append(kl([p[c] for c in sorted(set(own))], [q[c] / inside for c in sorted(set(own))]))
    return {"divergence": temperature**2 * math.fsum(each) / len(student_logits)}


def standard(vector: Array) -> Array:
    return (vector - vector.mean()) / math.sqrt(((vector - vector.mean()) ** 2).mean() + 1e-5)


def dfa_loss(
    student_layers: Array,
    teacher_layers: Arrays,
    adapters: Any,
    alignment: float = 1.0,
    distance: str = "mse",
    **rest: Any,
) -> dict[str, float]:
    """`adapters[i][l]` is the weight and bias of the map from the student's layer l + 1 to teacher i."""
    deep, each = student_layers.shape[1] - 1, []
    for i, layers in enumerate(teacher_layers):
        for at in range(len(student_layers)):
            for layer in range(1, deep + 1):
                exact = layer * (layers.shape[1] - 1) / deep
                wanted = layers[at, max(1, math.floor(exact + 0.5))]
                weight, bias = adapters[i][layer - 1]
                given = weight @ student_layers[at, layer] + bias
                if distance == "mse":
                    gap = float(((standard(given) - standard(wanted)) ** 2).mean())
                else:
                    gap = 1 - given @ wanted / (np.linalg.norm(given) * np.linalg.norm(wanted))
                each.append((i, gap))
    per_teacher = [mean_of([g for j, g in each if j == i]) for i in range(len(teacher_layers))]
    return {**vkd_loss(**rest), "alignment": alignment * mean_of(per_teacher)}


def linear(x: Array, layer: tuple[Array, Array]) -> Array:
    return layer[0] @ x + layer[1]


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def mmd(xs: Arrays, ys: Arrays) -> float:
    every = [*xs, *ys]
    scale = max(mean_of([float(((a - b) ** 2).sum()) for a in every for b in every]), 1e-6)

    def kernel(a: Array, b: Array) -> float:
        squared = float(((a - b) ** 2).sum())
        return math.fsum(math.exp(-squared / (2 * w * scale)) for w in (0.25, 0.5, 1, 2, 4))

    def average(first: Arrays, second: Arrays) -> float:
        return mean_of([kernel(a, b) for a in first for b in second])

    return average(xs, xs) + average(ys, ys) - 2 * average(xs, ys)


def cfl_loss(
    student_features: Array,
    teacher_features: Arrays,
    adapters: Any,
    matching: float = 0.1,
    reconstruction: float = 0.1,
    **rest: Any,
) -> dict[str, float]:
    """`adapters`: weights and biases of `student`, `teachers` (one each), `shared` (two), `back` (two each)."""

    def common(vector: Array, first: tuple[Array, Array]) -> Array:
        return linear(relu(linear(relu(linear(vector, first)), adapters["shared"][0])), adapters["shared"][1])

    own = [common(standard(f), adapters["student"]) for f in student_features]
    matched = lost = 0.0
    for features, first, back in zip(teacher_features, adapters["teachers"], adapters["back"], strict=True):
        theirs = [common(standard(f), first) for f in features]
        matched += mmd([h / np.linalg.norm(h) for h in own], [h / np.linalg.norm(h) for h in theirs])
        rebuilt = [linear(relu(linear(h, back[0])), back[1]) for h in theirs]
        lost += mean_of(
            [float(((r - standard(f)) ** 2).mean()) for r, f in zip(rebuilt, features, strict=True)]
        )
    return {**vkd_loss(**rest), "matching": matching * matched, "reconstruction": reconstruction * lost}


OBJECTIVES: dict[str, Callable[..., dict[str, float]]] = {
    "cfl": cfl_loss,
    "dfa": dfa_loss,
    "muka": muka_loss,
    "uhc": uhc_loss,
    "vkd": vkd_loss,
}


def temperature_from_passes(logits: Array, mean: Array) -> float:
    """The best of a fine grid of temperatures between 1/20 and 20."""
    grid = [math.exp(at / 500) for at in range(int(500 * math.log(0.05)), int(500 * math.log(20)) + 1)]
    return min(
        grid,
        key=lambda t: math.fsum(kl(p, softmax(z / t)) for z, p in zip(logits, mean, strict=True)),
    )
