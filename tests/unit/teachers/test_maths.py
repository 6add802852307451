"""What is kept of passes, and when more of them cannot change the routing, against plain float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.errors import RecipeError
from plait.teachers import Settings
from plait.teachers.early_stopping import bounds, decided, scores
from plait.teachers.mc_dropout import summarize
from tests.reference import posteriors as reference


def draw(n, k, classes, seed=0, sharp=2.0):
    noise = torch.randn(n, k, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    typical = torch.randn(
        n, 1, classes, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64
    )
    return (sharp * typical + noise).softmax(-1)


@pytest.mark.parametrize("k", [2, 3, 16])
@pytest.mark.parametrize("classes", [2, 5, 30])
def test_the_summary_is_that_of_a_plain_loop(k, classes):
    passes = draw(7, k, classes)
    found = summarize(passes)
    for row, text in enumerate(passes.tolist()):
        mean, expected, spread = reference.summary(text)
        torch.testing.assert_close(found.mean[row].tolist(), mean, rtol=1e-12, atol=0)
        assert found.expected_entropy[row].item() == pytest.approx(expected, rel=1e-12)
        assert found.spread[row].item() == pytest.approx(spread, rel=1e-9)


def test_the_passes_of_the_golden_vector():
    first = summarize(torch.tensor([[[0.9, 0.05, 0.05], [0.7, 0.2, 0.1]]]))
    torch.testing.assert_close(first.mean, torch.tensor([[0.8, 0.125, 0.075]]))
    assert scores(first.mean).item() == pytest.approx(0.4241, abs=5e-5)
    second = summarize(torch.tensor([[[0.6, 0.4], [0.3, 0.7]]]))
    assert scores(second.mean).item() == pytest.approx(0.0072, abs=5e-5)


def test_extremes_stay_finite():
    sure = torch.zeros(3, 4, 3)
    sure[..., 0] = 1
    sure[2, 1] = torch.tensor([0.0, 1.0, 0.0])
    found = summarize(sure)
    assert all(bool(value.isfinite().all()) for value in vars(found).values())
    assert found.expected_entropy.tolist() == [0, 0, 0]
    assert found.spread[:2].tolist() == [0, 0]
    assert found.spread[2] > 0


def test_the_spread_of_one_pass_is_unknown():
    assert summarize(draw(2, 1, 3)).spread.tolist() == [math.inf, math.inf]


def test_the_spread_is_the_standard_error_of_the_score():
    draws = torch.stack([draw(1, 16, 4, seed=0, sharp=1)[0]] * 4000)
    picks = torch.randint(16, (4000, 16), generator=torch.Generator().manual_seed(1))
    some = draws.gather(1, picks.unsqueeze(-1).expand(-1, -1, 4))
    found = summarize(some)
    assert scores(found.mean).std().item() == pytest.approx(found.spread.mean().item(), rel=0.1)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("done", [1, 4, 12])
def test_the_bounds_hold_and_are_reached(classes, done):
    passes = draw(6, done, classes, seed=done)
    low, high = bounds(passes.mean(1), done, 16)
    for row, text in enumerate(passes.tolist()):
        least, most = reference.reachable_scores(text, 16)
        assert low[row].item() <= least + 1e-12
        assert high[row].item() == pytest.approx(most, abs=1e-12)
        assert low[row].item() == pytest.approx(least, abs=0.02)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    done=st.integers(1, 15),
    classes=st.lists(st.integers(2, 6), min_size=2, max_size=4),
    sharp=st.floats(0.1, 8),
)
def test_certain_never_changes_the_routing(seed, done, classes, sharp):
    every = [draw(20, 16, c, seed + i, sharp * (i + 1)) for i, c in enumerate(classes)]
    # The worst that can follow is as likely as anything here.
    for p in every:
        p[::2, done:] = torch.eye(p.shape[-1], dtype=p.dtype)[seed % p.shape[-1]]
    found = decided([p[:, :done] for p in every], 16, "certain")
    now, then = (torch.stack([scores(p[:, :k].mean(1)) for p in every], -1).argmax(-1) for k in (done, 16))
    assert torch.equal(now[found], then[found])


def test_certain_and_likely_stop_what_is_plain():
    plain = [draw(50, 12, 3, 0, 40.0), torch.full((50, 12, 4), 0.25, dtype=torch.float64)]
    assert decided(plain, 16, "certain").float().mean() > 0.8
    assert decided(plain, 16, "likely").float().mean() > 0.8
    same = [plain[0], plain[0]]
    assert not decided(same, 16, "certain").any()
    assert not decided(same, 16, "likely").any()


def test_likely_is_seldom_wrong():
    every = [draw(4000, 16, 3, 1), draw(4000, 16, 4, 2)]
    found = decided([p[:, :8] for p in every], 16, "likely")
    now, then = (torch.stack([scores(p[:, :k].mean(1)) for p in every], -1).argmax(-1) for k in (8, 16))
    assert found.float().mean() > 0.3
    assert (now != then)[found].float().mean() < 0.005


def test_one_teacher_is_always_decided():
    assert decided([draw(5, 4, 3)], 16, "certain").all()


class TestSettings:
    def test_all_that_is_wrong_is_said_at_once(self):
        with pytest.raises(RecipeError) as error:
            Settings(passes=-1, batch_size=0, dropout=1.5, keep="all", stop="soon")
        assert str(error.value) == (
            "passes is -1 (expected 0 or more); "
            "dropout is 1.5; expected a number above 0 and below 1; "
            "keep is 'all'; expected features, layers or none; "
            "batch_size is 0 (expected 1 or more); "
            "stop is 'soon'; expected certain, likely or never"
        )

    def test_rounds(self):
        assert Settings().rounds == (16,)
        assert Settings(stop="likely").rounds == (4, 4, 4, 4)
        assert Settings(stop="likely", passes=10).rounds == (4, 4, 2)
        assert Settings(stop="likely", passes=3).rounds == (3,)
        assert Settings(passes=0).rounds == (0,)

    def test_more_is_kept_than_asked(self):
        assert [Settings(keep="features").keeps(what) for what in ("none", "features", "layers")] == [
            True, True, False,
        ]  # fmt: skip
