"""Perturbations: their strength, their independence between members, and an adversary that is better than chance."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from plait.ensembles import perturbations
from plait.ensembles.divergences import divergence, read
from plait.ensembles.perturbation import (
    INPUTS,
    PERTURBATIONS,
    Place,
    Prediction,
    check,
    member_generators,
    perturb,
    perturber,
    place,
)
from plait.ensembles.perturbations.adversarial import adversarial, project
from plait.ensembles.perturbations.dropout import dropouts, dropping
from plait.ensembles.perturbations.gaussian import gaussian
from plait.ensembles.perturbations.word_dropout import blanked, droppable_words, word_dropout
from plait.errors import RecipeError
from tests.models import FAMILIES, tiny
from tests.reference import ensembles as reference

M, B, T, H, C = 3, 4, 5, 8, 3
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 0, 0, 0, 0]]).bool()
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")


def states(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape or (M, B, T, H), generator=torch.Generator().manual_seed(seed)).to(dtype)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Net(nn.Module):
    """Two layers and a head per member; the first token is read, the others act on it through attention."""

    def __init__(self, problem: str, *, tokens: bool = False, rate: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.mix, self.up = nn.Linear(H, H), nn.Linear(H, H)
            self.heads = nn.Parameter(torch.randn(M, H, 1 if problem == "regression" else C))
        self.drop, self.tokens, self.problem = nn.Dropout(rate), tokens, problem

    def forward(self, h: Tensor) -> Tensor:
        h = h if h.dim() == 4 else h.unflatten(0, (M, -1))
        weights = (h @ self.mix(h).transpose(-1, -2)).softmax(-1)
        h = self.drop(torch.tanh(self.up(weights @ h) + h))
        if self.tokens:
            return torch.einsum("mbth,mhc->mbtc", h, self.heads[: h.shape[0]])
        return torch.einsum("mbh,mhc->mbc", h[:, :, 0], self.heads[: h.shape[0]])


def samples(name: str) -> dict[str, object]:
    """What each perturbation may ask for."""
    return {
        "hidden": states(),
        "members": M,
        "mask": MASK,
        "droppable": MASK,
        "prediction": Prediction(Net(PROBLEMS[0])),
        "blank": None,
        "generators": generators(1, 2, 3),
    }


@pytest.mark.parametrize("name", list(PERTURBATIONS))
class TestEveryPerturbation:
    """What holds for whatever is registered."""

    def test_asks_for_what_there_is_and_says_where_it_acts(self, name: str):
        entry = PERTURBATIONS[name]
        assert set(entry.inputs) <= set(INPUTS)
        assert isinstance(place(name, {}), Place)
        assert "paper" in entry.facts or name == "none"
        assert set(entry.facts.get("limits", {})) <= set(entry.options)
        assert all(option in (inspect.getdoc(entry.function) or "") for option in entry.options)

    def test_inputs_are_kept_and_layout_and_dtype_come_back(self, name: str):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            given = samples(name)
            hidden = states(dtype=dtype)
            net = Net(PROBLEMS[0]).to(dtype)
            before = hidden.clone()
            found = perturb(name, {}, **given | {"hidden": hidden, "prediction": Prediction(net)})
            flat = perturb(
                name,
                {},
                **given
                | {
                    "hidden": hidden.flatten(0, 1),
                    "generators": generators(1, 2, 3),
                    "mask": MASK.repeat(M, 1),
                    "prediction": Prediction(net),
                },
            )
            assert torch.equal(hidden, before)
            assert found.shape == hidden.shape
            assert found.dtype == flat.dtype == dtype
            torch.testing.assert_close(flat, found.flatten(0, 1))

    def test_one_member_can_be_drawn_by_itself(self, name: str):
        together = perturb(name, {}, **samples(name))
        net = Net(PROBLEMS[0])

        def alone(j: int) -> Tensor:
            def forward(h: Tensor) -> Tensor:
                return net(h.expand(M, -1, -1, -1))[j : j + 1]

            inputs = {
                "hidden": states()[j : j + 1],
                "members": 1,
                "prediction": Prediction(forward),
                "generators": generators(j + 1),
            }
            return perturb(name, {}, **samples(name) | inputs)[0]

        torch.testing.assert_close(together, torch.stack([alone(j) for j in range(M)]), rtol=1e-5, atol=1e-6)

    def test_default_draws_come_member_after_member(self, name: str):
        if "generators" not in PERTURBATIONS[name].inputs:
            pytest.skip("draws nothing")
        torch.manual_seed(5)
        together = perturb(name, {}, **samples(name) | {"generators": None, "members": M})
        net = Net(PROBLEMS[0])
        torch.manual_seed(5)
        for j in range(M):
            prediction = Prediction(lambda h, j=j: net(h.expand(M, -1, -1, -1))[j : j + 1])
            inputs = {
                "hidden": states()[j : j + 1],
                "members": 1,
                "generators": None,
                "prediction": prediction,
            }
            alone = perturb(name, {}, **samples(name) | inputs)[0]
            torch.testing.assert_close(together[j], alone, rtol=1e-5, atol=1e-6)

    def test_members_differ_where_something_is_drawn(self, name: str):
        same = states(1, B, T, H).expand(M, -1, -1, -1)
        found = perturb(name, {}, **samples(name) | {"hidden": same})
        acts = place(name, {}) in (Place.HIDDEN, Place.EMBEDDINGS)
        assert all(torch.equal(found[0], found[j]) != acts for j in range(1, M))

    def test_padding_stays_as_it_is(self, name: str):
        found = perturb(name, {}, **samples(name))
        assert torch.equal(found[:, ~MASK], states()[:, ~MASK])

    def test_gradients_reach_the_states(self, name: str):
        hidden = states().requires_grad_()
        found = perturb(name, {}, **samples(name) | {"hidden": hidden})
        (gradient,) = torch.autograd.grad(found.sum(), hidden)
        kept = torch.ones_like(hidden) if name != "word_dropout" else (found != 0).to(hidden)
        torch.testing.assert_close(gradient, kept)

    @pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf, "0.1", True])
    def test_a_strength_of_nothing_is_refused(self, name: str, value: object):
        for option in PERTURBATIONS[name].facts.get("limits", {}):
            with pytest.raises(
                RecipeError, match=f"perturbation {name}: {option} is {value!r}; expected a .*above 0"
            ):
                check(name, **{option: value})
            with pytest.raises(RecipeError, match=f"{option} is {value!r}"):
                perturb(name, {option: value}, **samples(name))


def test_all_bad_options_are_named_at_once():
    with pytest.raises(RecipeError) as caught:
        check("adversarial", strength=0, steps=1.5, start=0.1)
    assert str(caught.value) == (
        "perturbation adversarial: strength is 0; expected a number above 0; steps is 1.5; "
        "expected a whole number above 0 (perturbation none does nothing)"
    )
    with pytest.raises(RecipeError, match=r"rate is 1\.0; expected a number above 0 and below 1"):
        check("dropout", rate=1.0)
    with pytest.raises(RecipeError, match=r"gaussian has no option 'strenght' \(did you mean 'strength'"):
        check("gaussian", strenght=1.0)
    with pytest.raises(RecipeError, match="at is 'logits'; expected embeddings or hidden"):
        check("gaussian", at="logits")
    check("dropout", rate=None)
    with pytest.raises(ValueError, match="2 generators for 3 members"):
        gaussian(states(), M, generators=generators(1, 2))


def test_a_perturbation_is_one_file():
    files = {f.stem: f.read_text() for f in Path(perturbations.__path__[0]).glob("*.py")}
    del files["__init__"]
    assert set(files) == set(PERTURBATIONS)
    assert all(PERTURBATIONS[name].function.__module__.endswith(f".{name}") for name in files)


def test_where_a_perturbation_acts():
    assert [place(name, {}) for name in ("none", "dropout", "word_dropout", "gaussian", "adversarial")] == [
        Place.NONE, Place.DROPOUT, Place.EMBEDDINGS, Place.HIDDEN, Place.HIDDEN,
    ]  # fmt: skip
    assert place("gaussian", {"at": "embeddings"}) is Place.EMBEDDINGS


@pytest.mark.parametrize("name", list(PERTURBATIONS))
def test_a_bound_perturbation_draws_the_same_for_all_and_one_by_one(name: str):
    net = Net(PROBLEMS[0])
    inputs = {"mask": MASK, "droppable": MASK, "problem": PROBLEMS[0], "counted": None}
    together = perturber(name, {}, generators(1, 2, 3), **inputs)(states(), net)
    wanted = perturb(name, {}, **samples(name))
    assert torch.equal(together, wanted)
    one_by_one = perturber(name, {}, generators(1, 2, 3), **inputs)
    for j in range(M):
        alone = one_by_one(states()[j : j + 1], lambda h, j=j: net(h.expand(M, -1, -1, -1))[j : j + 1])
        torch.testing.assert_close(alone[0], together[j], rtol=1e-5, atol=1e-6)


def test_a_bound_perturbation_is_checked_at_once():
    with pytest.raises(RecipeError, match="perturbation gaussian: strength is 0"):
        perturber("gaussian", {"strength": 0})


def test_members_get_generators_of_their_own_that_a_resumed_run_gets_again():
    torch.manual_seed(4)
    first = [torch.randn(3, generator=g) for g in member_generators(3)]
    torch.manual_seed(4)
    again = [torch.randn(3, generator=g) for g in member_generators(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


class TestGaussian:
    """Noise relative to the size of each token's state."""

    def test_strength_is_relative_to_the_rms_of_the_token(self):
        h = states(2, 3, 4, 4000) * torch.tensor([1e-2, 1.0, 10.0, 1e3]).reshape(4, 1)
        noise = gaussian(h, 2, strength=0.25) - h
        for token in range(4):
            share = reference.rms(noise[0, 0, token]) / reference.rms(h[0, 0, token])
            assert share == pytest.approx(0.25, rel=0.05)

    def test_the_scale_is_held_still(self):
        h = states(dtype=torch.float64).requires_grad_()
        (gradient,) = torch.autograd.grad(gaussian(h, M).sum(), h)
        assert bool((gradient == 1).all())


class TestWordDropout:
    """Words, not special tokens, each for some members."""

    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 7, 3, 0, 0]])
    real = ids != 0

    def test_special_tokens_and_padding_stay(self):
        words = droppable_words(self.ids, self.real, special=[0, 2, 3])
        assert words.tolist() == [[False, True, True, True, False], [False, True, False, False, False]]
        found = word_dropout(states(M, 2, T, H), M, words, rate=0.999)
        zero = (found == 0).all(-1)
        assert torch.equal(zero, words.expand(M, 2, T))

    def test_the_share_that_goes_is_the_rate(self):
        words = torch.ones(50, 100, dtype=torch.bool)
        found = word_dropout(torch.ones(4, 50, 100, 1), 4, words, rate=0.3)
        assert float((found == 0).float().mean()) == pytest.approx(0.3, abs=0.02)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_blanking_embeddings_is_replacing_ids(self, family: str):
        """In every family the embeddings look at one place at a time."""
        model = tiny(family, "body").eval()
        ids = torch.tensor([[6, 17, 18, 9, 8], [6, 17, 8, 20, 21]])
        words = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 0, 1, 1]]).bool()
        unknown = 4
        with torch.no_grad():
            h, blank = model.embeddings(ids), model.embeddings(blanked(ids, words, unknown))
            stacked = h.expand(M, -1, -1, -1)
            found = word_dropout(stacked, M, words, blank, generators(1, 2, 3), rate=0.5)
            for j, generator in enumerate(generators(1, 2, 3)):
                dropped = (torch.rand((2, 5), generator=generator) < 0.5) & words
                assert bool(dropped.any())
                wanted = model.embeddings(torch.where(dropped, unknown, ids))
                torch.testing.assert_close(found[j], wanted)


class TestDropout:
    """Train mode draws a mask for every row; `dropping` sets how much."""

    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_rate_of_a_family_is_set_and_comes_back(self, family: str):
        model = tiny(family, "sequence").train()
        before = [getattr(owner, name) for owner, name in dropouts(model)]
        with dropping(model, 0.25):
            assert {getattr(owner, name) for owner, name in dropouts(model)} == {0.25}
            ids = torch.tensor([[6, 17, 18, 9, 8]]).expand(6, -1)
            rows = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            assert len({tuple(row.tolist()) for row in rows}) == 6
        assert [getattr(owner, name) for owner, name in dropouts(model)] == before

    @pytest.mark.parametrize("family", FAMILIES)
    def test_no_layer_keeps_a_rate_of_its_own(self, family: str, monkeypatch: pytest.MonkeyPatch):
        """Attention too: its rate is a layer's in most families, a plain number in ModernBERT."""
        model, ids, seen = tiny(family, "body").train(), torch.tensor([[6, 17, 18, 9, 8]]), []
        drop, attend = functional.dropout, functional.scaled_dot_product_attention

        def dropout(x: Tensor, p: float = 0.5, *args: object, **kwargs: object) -> Tensor:
            seen.append(("layer", p))
            return drop(x, p, *args, **kwargs)

        def attention(*args: object, dropout_p: float = 0.0, **kwargs: object) -> Tensor:
            seen.append(("attention", dropout_p))
            return attend(*args, dropout_p=dropout_p, **kwargs)

        monkeypatch.setattr(functional, "dropout", dropout)
        monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
        with dropping(model, 0.25):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        assert seen
        assert {rate for _, rate in seen} == {0.25}

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_model_that_drops_nothing_is_refused(self, family: str):
        model = tiny(family, "body")
        for owner, name in dropouts(model):
            setattr(owner, name, 0.0)
        with (
            pytest.raises(RecipeError, match=r"drops nothing \(its config says 0\); expected a rate above 0"),
            dropping(model),
        ):
            pass

    def test_rates_come_back_after_an_error(self):
        net = Net(PROBLEMS[0], rate=0.1)
        with pytest.raises(KeyError), dropping(net, 0.5):
            raise KeyError
        assert net.drop.p == 0.1


def raised(net: Net, h: Tensor, noise: Tensor) -> Tensor:
    """KL(clean ‖ perturbed) of every member and example."""
    with torch.no_grad():
        clean, moved = (read(net(x), net.problem) for x in (h, h + noise))
        rise = divergence(clean, moved, net.problem)
    return rise.sum(-1) if net.tokens else rise


def sizes(noise: Tensor) -> Tensor:
    return (noise * MASK.unsqueeze(-1)).square().sum((-1, -2)).sqrt()


class TestAdversarial:
    """Better than a random direction of the same length, and nothing but the states is touched."""

    @pytest.mark.parametrize("tokens", [False, True])
    @pytest.mark.parametrize("problem", PROBLEMS)
    @pytest.mark.parametrize("strength", [1e-3, 0.1])
    def test_beats_every_one_of_many_random_directions(self, problem: str, tokens: bool, strength: float):
        if tokens and problem == "regression":
            pytest.skip("no such task")
        net, h = Net(problem, tokens=tokens).double(), states(dtype=torch.float64)
        counted = MASK if tokens else None
        prediction = Prediction(net, problem, counted)
        noise = adversarial(h, M, prediction, MASK, generators(1, 2, 3), strength=strength) - h

        def rise(n: Tensor) -> Tensor:
            with torch.no_grad():
                found = divergence(read(net(h), problem), read(net(h + n), problem), problem)
            return (found * MASK).sum(-1) if tokens else found

        chance = torch.stack(
            [
                rise(
                    project(
                        1e9 * states(seed=seed, dtype=torch.float64) * MASK.unsqueeze(-1),
                        sizes(noise)[..., None, None],
                    )
                )
                for seed in range(20)
            ]
        )
        assert bool((rise(noise) > chance.mean(0)).all())
        assert float((rise(noise) / chance.mean(0)).mean()) > 3
        assert float((rise(noise) > chance).double().mean()) > 0.97

    def test_stays_in_the_ball_and_reaches_its_edge(self):
        net, h = Net(PROBLEMS[0]), states()
        for steps in (1, 3):
            noise = adversarial(h, M, Prediction(net), MASK, strength=0.2, steps=steps) - h
            share = sizes(noise) / sizes(h)
            assert bool((share <= 0.2 * (1 + 1e-4)).all())
            assert float(share.min()) > 0.2 * 0.9

    def test_more_steps_raise_more(self):
        net, h = Net(PROBLEMS[0]).double(), states(dtype=torch.float64)
        rises = [
            float(
                raised(
                    net,
                    h,
                    adversarial(h, M, Prediction(net), MASK, generators(1, 2, 3), strength=0.02, steps=k) - h,
                ).mean()
            )
            for k in (1, 2, 8)
        ]
        assert rises[0] < rises[1] < rises[2]

    def test_the_search_follows_the_gradient_of_the_divergence(self):
        """One step by hand: autograd through KL(clean ‖ moved), and the formula."""
        net, h = Net(PROBLEMS[0]).double(), states(dtype=torch.float64)
        draws = torch.stack(
            [torch.randn((B, T, H), generator=g, dtype=torch.float64) for g in generators(1, 2, 3)]
        )
        real = MASK.unsqueeze(-1).double()
        radius = 0.1 * sizes(h)[..., None, None]
        first = draws * real * 0.1 * radius / (real.expand(B, T, H).sum((-1, -2), keepdim=True)).sqrt()
        moving = first.clone().requires_grad_()
        clean = net(h).detach()
        (g,) = torch.autograd.grad(divergence(clean, net(h + moving), PROBLEMS[0]).sum(), moving)
        g = g * real
        step = first + radius * g / g.square().sum((-1, -2), keepdim=True).sqrt()
        length = step.square().sum((-1, -2), keepdim=True).sqrt()
        wanted = h + step * (radius / length).clamp(max=1)
        found = adversarial(h, M, Prediction(net), MASK, generators(1, 2, 3), strength=0.1)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
        known = Prediction(net, clean=clean)
        torch.testing.assert_close(
            adversarial(h, M, known, MASK, generators(1, 2, 3), strength=0.1), wanted, rtol=1e-9, atol=1e-11
        )

    def test_one_mask_for_clean_and_perturbed_under_dropout(self):
        """With masks of their own the clean and the moved prediction would differ by dropout, not by the noise."""
        net, h = Net(PROBLEMS[0], rate=0.5).double().train(), states(dtype=torch.float64)
        torch.manual_seed(3)
        noise = adversarial(h, M, Prediction(net), MASK, generators(1, 2, 3), strength=0.05) - h

        def rise(n: Tensor) -> Tensor:
            with torch.no_grad():
                torch.manual_seed(3)
                clean = net(h)
                torch.manual_seed(3)
                return divergence(clean, net(h + n), PROBLEMS[0])

        chance = torch.stack(
            [
                rise(project(1e9 * states(seed=s, dtype=torch.float64), sizes(noise)[..., None, None]))
                for s in range(9)
            ]
        )
        assert float((rise(noise) > chance.mean(0)).double().mean()) > 0.9

    def test_the_search_leaves_no_trace(self):
        net, h = Net(PROBLEMS[0], rate=0.5).train(), states()
        torch.manual_seed(1)
        adversarial(h, M, Prediction(net), MASK, generators(1, 2, 3), steps=2)
        after = torch.rand(3)
        torch.manual_seed(1)
        assert torch.equal(after, torch.rand(3))
        assert all(parameter.grad is None for parameter in net.parameters())
        assert not h.requires_grad

    def test_works_inside_no_grad_and_with_states_that_need_none(self):
        with torch.no_grad():
            found = adversarial(states(), M, Prediction(Net(PROBLEMS[0])), MASK)
        assert not torch.equal(found, states())

    def test_a_prediction_that_does_not_move_leaves_the_first_noise(self):
        h = states()
        net = Prediction(lambda x: x[:, :, 0, :C] * 0)
        noise = adversarial(h, M, net, MASK, strength=0.1, start=0.5) - h
        assert bool(noise.isfinite().all())
        share = sizes(noise) / sizes(h)
        assert bool(((share > 0) & (share < 0.1)).all())

    def test_empty_rows_and_zero_states_stay(self):
        h = states()
        h[:, 3] = 0
        mask = MASK.clone()
        mask[2] = False
        found = adversarial(h, M, Prediction(Net(PROBLEMS[0])), mask)
        assert torch.equal(found[:, 2:], h[:, 2:])
        assert bool(found.isfinite().all())

    def test_other_examples_of_the_batch_change_nothing(self):
        net, h = Net(PROBLEMS[0]).double(), states(dtype=torch.float64)
        other = h.clone()
        other[:, 1:] = states(seed=7, dtype=torch.float64)[:, 1:]
        found, again = (adversarial(x, M, Prediction(net), MASK, generators(1, 2, 3)) for x in (h, other))
        torch.testing.assert_close(again[:, 0], found[:, 0])
