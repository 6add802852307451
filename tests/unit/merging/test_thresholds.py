"""The k-th greatest change: exact for every kind of data, whether the sample hits or misleads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from plait.merging import chunks as pieces
from plait.merging import thresholds
from plait.merging.chunks import Files, InMemory
from plait.merging.engine import combine
from plait.merging.job import Job, prepare
from plait.merging.rule import RULES
from plait.merging.thresholds import Bracket, Thresholds, by_histogram, dropped, kept, kth_greatest

SIZE = 50_000


def normal(g: torch.Generator) -> torch.Tensor:
    return torch.randn(SIZE, generator=g)


def with_still_rows(g: torch.Generator) -> torch.Tensor:
    """Nine rows of ten do not move at all, as in the embedding of rare words."""
    values = torch.randn(SIZE // 100, 100, generator=g)
    values[torch.rand(len(values), generator=g) < 0.9] = 0.0
    return values.reshape(-1)


def few_values(g: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 4, (SIZE,), generator=g) / 4


def sorted_values(g: torch.Generator) -> torch.Tensor:
    return torch.randn(SIZE, generator=g).exp().sort().values


def hidden_from_the_sample(g: torch.Generator) -> torch.Tensor:
    """The blocks that a sample takes are small, everything else is large."""
    values = 1 + torch.rand(SIZE, generator=g)
    values.view(-1, 250)[::40] *= 1e-6
    return values


def tiny_values(g: torch.Generator) -> torch.Tensor:
    return torch.randn(SIZE, generator=g) * 1e-40  # below the normal numbers of float32


KINDS = [normal, with_still_rows, few_values, sorted_values, hidden_from_the_sample, tiny_values]


def job_of(changes: list[torch.Tensor], **options: Any) -> Job:
    base = InMemory("base", {"w": torch.zeros_like(changes[0])})
    sources = [InMemory(f"s{i}", {"w": change}) for i, change in enumerate(changes)]
    return prepare(sources, ["w"], RULES["ties"], base=base, options=options)


def brute(values: torch.Tensor, density: float) -> float:
    k = kept(density, values.numel())
    return float(values.abs().reshape(-1).sort(descending=True).values[k - 1]) if k else math.inf


@pytest.mark.parametrize("density", [0.0, 1e-5, 0.1, 0.2, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_exact(kind: Any, density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "SAMPLE", 2**12)
    changes = [kind(torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    job = job_of(changes, density=density)
    with Files() as files:
        found = Thresholds().of(job, job.slots[0], files)
    keeps = [int((c.abs() >= t).sum()) for c, t in zip(changes, found, strict=True)]
    if density == 1.0:
        assert keeps == [SIZE, SIZE]
    else:
        assert found.tolist() == [brute(c, density) for c in changes]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("rank", [1, 7, SIZE // 2, SIZE])
def test_histogram(kind: Any, rank: int) -> None:
    values = kind(torch.Generator().manual_seed(0)).abs().numpy()
    parts = np.array_split(values[None], 7, axis=1)
    assert by_histogram(lambda: iter(parts), rank, 0) == np.sort(values)[::-1][rank - 1]


@pytest.mark.parametrize(("low", "high"), [(5.0, 6.0), (0.0, 0.001), (0.0, np.inf), (0.5, 0.5)])
def test_a_bracket_that_misses_costs_time_only(low: float, high: float) -> None:
    values = np.abs(np.random.default_rng(0).normal(size=(1, 5000))).astype(np.float32)
    bracket = Bracket(np.array([low], dtype=np.float32), np.array([high], dtype=np.float32))
    found = kth_greatest([lambda: iter(np.array_split(values, 3, axis=1))], bracket, 1000)
    assert found == [np.sort(values[0])[::-1][999]]


@pytest.mark.parametrize(
    ("low", "k", "found"),
    [(3.5, 3, 8), (3.5, 7, 4), (4, 6, 5), (4, 7, 4), (3.5, 2, None), (3.5, 8, None), (4, 8, None)],
)
def test_the_ends_of_a_bracket(low: float, k: int, found: float | None) -> None:
    count = thresholds.Count(np.float32(low), np.float32(8.5))
    count.add(np.arange(1, 11, dtype=np.float32))
    assert count.select(k) == found


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "ROOM", 100)
    values = np.abs(np.random.default_rng(0).normal(size=(1, 5000))).astype(np.float32)
    bracket = Bracket(np.array([0.0], dtype=np.float32), np.array([9.0], dtype=np.float32))
    count = thresholds.Count(bracket.low[0], bracket.high[0])
    for part in np.array_split(values[0], 50):
        count.add(part)
    assert sum(map(len, count._between)) <= 100
    assert count.select(1000) is None
    assert kth_greatest([lambda: iter([values])], bracket, 1000) == [np.sort(values[0])[::-1][999]]


def test_the_sample_almost_always_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does not, results stay exact but cost two more passes: ordinary changes must not need them."""
    monkeypatch.setattr(thresholds, "SAMPLE", 2**12)
    monkeypatch.setattr(thresholds, "SAMPLE", 2**12)
    monkeypatch.setattr(thresholds, "by_histogram", lambda *_: pytest.fail("the bracket missed"))
    for seed in range(20):
        job = job_of([normal(torch.Generator().manual_seed(seed)) * 1e-3])
        with Files() as files:
            Thresholds().of(job, job.slots[0], files)


@pytest.mark.parametrize("size", [300, 40_000])
def test_one_threshold_for_the_model(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CHUNK", 999)
    g = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(size, generator=g), "b": torch.randn(40, 10, generator=g), "n": torch.arange(3)}
    tuned = [
        {
            k: v + s * torch.randn(v.shape, generator=g) if v.is_floating_point() else v
            for k, v in base.items()
        }
        for s in (0.1, 0.3)
    ]
    tuned[0]["b"] *= 2
    sources = [InMemory(f"s{i}", t) for i, t in enumerate(tuned)]
    options = {"scope": "model", "density": 0.3}
    merged = dict(combine(sources, list(base), RULES["ties"], base=InMemory("base", base), options=options))
    changes = [torch.cat([(t[k] - base[k]).reshape(-1) for k in "ab"]) for t in tuned]
    limits = torch.tensor([brute(c, 0.3) for c in changes])
    for name in "ab":
        params = torch.stack([t[name] for t in tuned])
        wanted = RULES["ties"].function(params, base[name], torch.ones(2), limits)
        assert torch.equal(merged[name], wanted)


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("outliers", [0.0, 1e-5, 0.006, 1.0])
def test_outliers_have_a_limit_of_their_own(outliers: float, scope: str) -> None:
    changes = [normal(torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    sources = [InMemory(f"s{i}", {"w": change}) for i, change in enumerate(changes)]
    base = InMemory("base", {"w": torch.zeros(SIZE)})
    options = {"density": 0.15, "outliers": outliers, "scope": scope}
    job = prepare(sources, ["w"], RULES["breadcrumbs"], base=base, options=options)
    with Files() as files:
        limits = Thresholds()
        least, most = (limits.of(job, job.slots[0], files, share) for share in ("density", "outliers"))
    assert least.tolist() == [brute(c, 0.15) for c in changes]
    gone = [int((c.abs() >= m).sum()) for c, m in zip(changes, most, strict=True)]
    assert gone == [dropped(outliers, SIZE)] * 2


@pytest.mark.parametrize(("share", "size", "k"), [(0.006, 100, 0), (0.1, 30, 3), (0.5, 3, 1), (0, 5, 0), (1, 5, 5)])
def test_how_many_are_outliers(share: float, size: int, k: int) -> None:
    assert dropped(share, size) == k


@pytest.mark.parametrize(
    ("density", "size", "k"), [(0.2, 10, 2), (0.2, 11, 3), (0.1, 30, 3), (0, 5, 0), (1, 5, 5)]
)
def test_how_many_are_kept(density: float, size: int, k: int) -> None:
    assert kept(density, size) == k
