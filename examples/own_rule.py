"""A merge rule of your own.

A rule is a function of one parameter. Its decorator gives it a name; its signature and docstring give it options and
documentation. This one moves the average towards the source that lies furthest from it.

    python examples/own_rule.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import toy

import plait
from plait.merging.rule import RULES, Law
from plait.tensors import Coefficients, Parameter, Stack


@RULES.register("outspoken", laws={Law.IDEMPOTENT})
def outspoken(params: Stack, weights: Coefficients, *, share: float = 0.25) -> Parameter:
    """Returns the average, moved towards the source that lies furthest from it.

    θ = (1 − s) θ̄ + s θ_j,  j = argmax_j ‖θ_j − θ̄‖

    Args:
        params: the parameter of the sources.
        weights: λ, of the average.
        share: s.
    """
    mean = (params * weights.view(-1, *[1] * (params.ndim - 1))).sum(0) / weights.sum()
    furthest = (params - mean).flatten(1).norm(dim=1).argmax()
    return (1 - share) * mean + share * params[furthest]


def main(place: Path, base: str) -> None:
    """Merges by the new rule and by the average."""
    tasks = ("topic", "mood")
    train = {task: toy.write(place / f"{task}.jsonl", toy.sentences(192), task) for task in tasks}
    for task in tasks:
        plait.finetune(base, train[task], place / task, epochs=3, learning_rate=1e-4, max_length=32)
    sources = {task: place / task for task in tasks}

    # Options of the rule are options of the merge; the record and `plait methods` know them.
    ours = plait.merge(sources, method="outspoken", share=0.5, out=place / "ours")
    assert ours.manifest.recipe["method"]["share"] == 0.5
    assert plait.methods("outspoken")["outspoken"]["options"]["share"]["default"] == 0.25

    # With a share of 0 it is the average.
    average = plait.merge(sources, method="average", out=place / "average")
    level = plait.merge(sources, method="outspoken", share=0.0, out=place / "level")
    line = "What a charming lullaby!"
    assert [t[0]["label"] for t in level.predict(line).values()] == [
        t[0]["label"] for t in average.predict(line).values()
    ]
    scores = plait.evaluate(ours, train)
    print({task: round(scores[task]["accuracy"], 3) for task in tasks})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch), toy.encoder())
