"""Slow, obvious float64 versions of what a posterior store keeps; no code of plait."""

from __future__ import annotations

import itertools
import math

import torch


def entropy(row):
    return -sum(p * math.log(p) for p in row if p > 0)


def score(row):
    return 1 - entropy(row) / math.log(len(row))


def average(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def summary(passes):
    """Of one text's passes (a list of rows): mean, expected entropy, standard error of the score."""
    mean = average(passes)
    entropies = [entropy(row) for row in passes]
    slopes = [
        sum(p * math.log(m) for p, m in zip(row, mean, strict=True) if m > 0) / math.log(len(mean))
        for row in passes
    ]
    middle = sum(slopes) / len(slopes)
    variance = sum((slope - middle) ** 2 for slope in slopes) / (len(slopes) - 1)
    return mean, sum(entropies) / len(entropies), math.sqrt(variance / len(slopes))


def reachable_scores(passes, total, steps=20):
    """Least and greatest score over a grid of all that the remaining passes may average to."""
    done, classes = len(passes), len(passes[0])
    mean, share = average(passes), len(passes) / total
    found = []
    for parts in itertools.product(range(steps + 1), repeat=classes - 1):
        if sum(parts) <= steps:
            rest = [part / steps for part in (*parts, steps - sum(parts))]
            found.append(score([share * m + (1 - share) * q for m, q in zip(mean, rest, strict=True)]))
    assert done <= total
    return min(found), max(found)


def hand_loop(model, batches, passes, seed):
    """The plain way: per batch one pass without dropout, then K with it; logits and every pass's probabilities."""
    torch.manual_seed(seed)
    every = []
    with torch.no_grad():
        for batch in batches:
            model.eval()
            logits = model(**batch).logits
            model.train()
            some = [torch.softmax(model(**batch).logits, -1) for _ in range(passes)]
            every.append((logits, torch.stack(some, 1)))
    model.eval()
    return every
