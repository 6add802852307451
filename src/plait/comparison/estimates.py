"""What a candidate will take: seconds and memory, from sizes, lengths of texts and the speed of this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod
from typing import Any

import torch

from plait.checkpoints.checkpoint import Checkpoint
from plait.comparison.candidates import Candidate
from plait.comparison.situation import Situation
from plait.data import Examples
from plait.merging.defaults import PASSES
from plait.merging.rule import RULES, Law, laws
from plait.recipe import AmalgamateRecipe, EnsembleRecipe, MergeRecipe

SAMPLE = 64
"""Texts whose tokens are counted."""
REACHED = 0.55
"""Share of the speed of one matrix product that a forward pass of an encoder reaches."""
LAYER = 3e-4
"""Seconds that a layer takes for any batch, however small."""
OPENING = 0.6
"""Seconds to plan, write and open a model, however small."""
BYTES = 2.5e-9
"""Seconds to read, write and hash a byte."""
SOLVED, ROWWISE, ENTRY = 1.5e-7, 4e-8, 8e-9
"""Seconds per parameter and source of a rule: that decomposes matrices, that sorts, that looks at one entry."""
BACKWARD, MONTE_CARLO = 3.0, 16
PROCESS = 5e8
"""Bytes of a process that has imported everything."""


@dataclass(frozen=True)
class Cost:
    """Seconds to make, seconds to score, and bytes at the peak."""

    making: float
    scoring: float
    bytes: float

    @property
    def seconds(self) -> float:
        """Returns the seconds of both."""
        return self.making + self.scoring


def speed(seconds: float = 0.1) -> float:
    """Returns floating-point operations per second of matrix products as encoders have them, on this machine now."""
    left, right = torch.randn(512, 384), torch.randn(384, 1536)
    operations, end = 0, time.perf_counter() + seconds
    start = time.perf_counter()
    while time.perf_counter() < end:
        left @ right
        operations += 2 * 512 * 384 * 1536
    return operations / (time.perf_counter() - start)


@dataclass(frozen=True)
class Estimator:
    """Estimates for one situation."""

    situation: Situation
    flops: float = field(default_factory=speed)
    _lengths: dict[tuple[str, int], float] = field(default_factory=dict, repr=False)

    @cached_property
    def parameters(self) -> list[int]:
        """Returns the parameters of each source."""
        sources = self.situation.material.sources
        return [sum(prod(s.header(stored).shape) for stored in s.body.values()) for s in sources]

    def forward(self, source: Checkpoint, rows: Examples, limit: int | None = None) -> float:
        """Returns the seconds of a source's forward pass over rows, or over so many of them."""
        texts = len(rows) if limit is None else min(limit, len(rows))
        key = (source.name, id(rows))
        if key not in self._lengths:
            self._lengths[key] = length_of(source, rows, self.situation.recipe.max_length)
        tokens = self._lengths[key]
        weights = [h.shape for s, h in ((s, source.header(s)) for s in source.body.values()) if len(h.shape) == 2]
        vocabulary = getattr(source.config, "vocab_size", 0)
        active = sum(prod(shape) for shape in weights if shape[0] != vocabulary)
        layers = int(getattr(source.config, "num_hidden_layers", 1) or 1)
        batches = ceil(texts / self.situation.recipe.batch_size)
        return 2 * active * tokens * texts / (self.flops * REACHED) + batches * layers * LAYER

    @cached_property
    def own(self) -> list[float]:
        """Returns the seconds in which each source answers the tests that it knows."""
        material = self.situation.material
        return [
            sum(self.forward(source, test.rows) for test in material.tests if place in test.members)
            for place, source in enumerate(material.sources)
        ]

    @cached_property
    def tests(self) -> float:
        """Returns the seconds in which one model answers all tests."""
        material = self.situation.material
        return sum(self.forward(material.sources[test.members[0]], test.rows) for test in material.tests)

    def data(self, limit: int) -> float:
        """Returns the seconds of one forward pass of each source over so many of its texts."""
        data = self.situation.material.data
        return sum(self.forward(s, data[s.name], limit) for s in self.situation.material.sources if s.name in data)

    def texts(self) -> float:
        """Returns the seconds of the mean source's forward pass over all texts that students learn from."""
        material = self.situation.material
        if material.texts is None:
            return 0.0
        found = [self.forward(source, material.texts) for source in material.sources]
        return sum(found) / len(found)

    def cost(self, candidate: Candidate) -> Cost:
        """Returns what a candidate will take."""
        size, count = 4 * max(self.parameters), len(self.parameters)
        if candidate.recipe is None or candidate.id == "ensemble/separate":
            everyone = self.tests * count if candidate.way == "ensemble" else sum(self.own)
            return Cost(0.0, everyone + OPENING, PROCESS + 2 * size)
        opening = OPENING + BYTES * size * (count + 2)
        if isinstance(candidate.recipe, MergeRecipe):
            making, held = self.merging(candidate.recipe), self.memory(candidate.recipe, size)
            return Cost(opening + making, self.tests, PROCESS + held)
        if isinstance(candidate.recipe, AmalgamateRecipe):
            return Cost(opening + self.studying(candidate.recipe), self.tests, PROCESS + 6 * size)
        taught = candidate.recipe.epochs > 0
        making = self.teaching(candidate.recipe) if taught else self.data(10**9) if candidate.data else 0.0
        members = 1 if taught or candidate.data else count
        return Cost(opening + making, self.tests * members, PROCESS + (6 if taught else count + 1) * size)

    def merging(self, recipe: MergeRecipe) -> float:
        """Returns the seconds of a merge: statistics, the rule, what follows it."""
        total = sum(self.parameters)
        method = recipe.resolved_method(base=self.situation.base is not None, data=self.situation.material.data)
        rule = RULES[method.name]
        found = total * rate_of(rule)
        limit = method.examples
        if rule.facts.get("forward"):
            found += BACKWARD * self.data(limit)
        elif {"importances", "grams"} & set(rule.inputs):
            found += (2 * BACKWARD if "importances" in rule.inputs else 2.0) * self.data(limit)
        if recipe.open and recipe.sources and all(s.data for s in recipe.sources.values()):
            passes = PASSES if recipe.refine is None else recipe.refine
            found += (2.0 + passes * (BACKWARD + 1)) * self.data(recipe.refine_texts)
        return found

    def memory(self, recipe: MergeRecipe, size: float) -> float:
        """Returns the bytes that a merge holds: a model, and statistics or what training needs."""
        method = recipe.resolved_method(base=self.situation.base is not None, data=self.situation.material.data)
        informed = {"importances", "grams"} & set(RULES[method.name].inputs)
        held = len(self.parameters) * size if informed else size
        return size + held + (4 * size if recipe.open else 0)

    def studying(self, recipe: AmalgamateRecipe) -> float:
        """Returns the seconds of an amalgamation: teachers, the gate, the student."""
        one, count = self.texts(), len(self.parameters)
        return one * (count + 2 + recipe.epochs * BACKWARD * 1.1)

    def teaching(self, recipe: EnsembleRecipe) -> float:
        """Returns the seconds in which sources teach one model."""
        return self.texts() * (len(self.parameters) + (recipe.student_epochs or recipe.epochs) * BACKWARD * 1.1)


def rate_of(rule: Any) -> float:
    """Returns the seconds of a rule per parameter and source."""
    if rule.facts.get("elsewhere") or rule.facts.get("forward") or "grams" in rule.inputs:
        return SOLVED
    return ENTRY if Law.ELEMENTWISE in laws(rule) and not {"thresholds", "draws"} & set(rule.inputs) else ROWWISE


def length_of(source: Checkpoint, rows: Examples, limit: int | None) -> float:
    """Returns the mean tokens of a text, counted on some of them."""
    some = rows.sample(SAMPLE)
    texts = [text if isinstance(text, str) else " ".join(text) for text in some.texts]
    pairs = some.pairs or [""] * len(texts)
    tokenizer = source.tokenizer()
    most = min(limit or 512, tokenizer.model_max_length, 512)
    counts: list[int] = [
        min(len(tokenizer(a, b or None)["input_ids"]), most) for a, b in zip(texts, pairs, strict=True)
    ]
    return sum(counts) / len(counts)


def described(cost: Cost) -> Mapping[str, int | float]:
    """Returns a cost as plain data."""
    return {"estimated_seconds": round(cost.seconds, 1), "estimated_bytes": int(cost.bytes)}
