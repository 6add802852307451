"""What every registered merge rule promises: its reference, its laws, its manners."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait.merging.rule import INPUTS, RULES, Law, RuleEntry, laws
from plait.registry import Entry, describe
from tests.reference.rules import REFERENCES

quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Case:
    """The inputs of one call, and options of the rule."""

    params: Tensor
    weights: Tensor
    base: Tensor
    importances: Tensor
    grams: Tensor | None
    draws: Tensor
    options: dict[str, Any]
    depth: float = 0.5

    @property
    def typical(self) -> Tensor:
        return self.importances.double().flatten(1).mean(1).float()

    def least(self, rule: RuleEntry, name: str, rounding: Callable[[float], int]) -> Tensor:
        """Per source the k-th greatest change, k the share that an option of the rule says."""
        changes = (self.params - self.base).flatten(1).abs()
        share = self.options.get(name, rule.options[name].default)
        k = rounding(round(share * changes.shape[1], 9))
        return (
            changes.sort(1, descending=True).values[:, k - 1] if k else torch.full((len(changes),), math.inf)
        )

    def supplied(self, rule: RuleEntry) -> dict[str, Any]:
        limits = {"thresholds": ("density", math.ceil), "ceilings": ("outliers", math.floor)}
        return {
            name: self.least(rule, *limits[name]) if name in limits else getattr(self, name)
            for name in rule.inputs
        }

    def call(self, rule: RuleEntry) -> Tensor:
        return rule.function(**self.supplied(rule), **self.options)


def options_of(draw: st.DrawFn, rule: RuleEntry) -> dict[str, Any]:
    limits = rule.facts.get("limits", {})
    chosen: dict[str, Any] = {}
    for name, option in rule.options.items():
        if choices := get_args(option.annotation):
            chosen[name] = draw(st.sampled_from(choices))
        elif draw(st.booleans()):
            low, high = limits.get(name, (0.0, 2.0))
            values = (0.0, 0.001, 0.25, 0.5, 1.0, 2.0)
            chosen[name] = draw(st.sampled_from([v for v in values if low <= v <= high]))
    return chosen


def spread(generator: torch.Generator, *shape: int) -> Tensor:
    """Returns numbers of several magnitudes, some of them 0 and some equal.

    All are multiples of 1/64, so that differences and signs of sums are exact in float32: which change is the larger,
    and whether two cancel, is then no matter of rounding.
    """
    powers = torch.randint(-2, 3, shape, generator=generator).float()
    values = (torch.randn(*shape, generator=generator) * 4.0**powers * 64).round() / 64
    values[torch.rand(shape, generator=generator) < 0.1] = 0.0
    values[torch.rand(shape, generator=generator) < 0.1] = 0.25
    return values


def any_numbers(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


@st.composite
def cases(draw: st.DrawFn, rule: RuleEntry) -> Case:
    n = rule.facts.get("sources") or draw(st.integers(1, 5))
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 8)))
    # Which of two singular values is the greater must not be a matter of rounding: no two entries are alike.
    entries = any_numbers if "elsewhere" in rule.facts else spread
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weights = torch.tensor(draw(st.lists(st.sampled_from([0.25, 1.0, 3.0]), min_size=n, max_size=n)))
    inputs = torch.randn(n, 9, shape[1], generator=g)
    importance_shape = draw(st.sampled_from([(n, 1, 1), (n, shape[0], 1), (n, 1, shape[1]), (n, *shape)]))
    importances = spread(g, *importance_shape).abs() * draw(st.sampled_from([0.0, 1e-12, 1.0, 1e12]))
    return Case(
        params=entries(g, n, *shape),
        weights=weights,
        base=entries(g, *shape),
        importances=importances,
        grams=inputs.transpose(1, 2) @ inputs / 9 if draw(st.booleans()) else None,
        draws=torch.rand(n, *shape, generator=g),
        options=options_of(draw, rule),
        depth=draw(st.sampled_from([0.0, 0.4, 1.0])),
    )


def close(found: Tensor, wanted: Tensor, case: Case, tolerance: float = 2e-5) -> bool:
    scale = max(float(case.params.abs().max()), float(case.base.abs().max()), 1e-30)
    return bool(((found.double() - wanted.double()).abs() <= tolerance * scale).all())


def with_equal_sources(case: Case) -> Case:
    return replace(case, params=case.params[:1].expand_as(case.params).clone())


def idempotent(rule: RuleEntry, case: Case) -> bool:
    case = with_equal_sources(case)
    return close(case.call(rule), case.params[0], case)


def symmetric(rule: RuleEntry, case: Case) -> bool:
    n = len(case.params)
    back = list(reversed(range(n)))
    turned = replace(
        case,
        **{k: getattr(case, k)[back] for k in ("params", "weights", "importances", "draws")},
        grams=None if case.grams is None else case.grams[back],
    )
    wanted = case.call(rule)
    return close(turned.call(rule), wanted, case, 2e-5 * max(1.0, float(wanted.abs().max())))


def bounded(rule: RuleEntry, case: Case) -> bool:
    slack = 1e-6 * float(case.params.abs().max()) + 1e-12
    low, high, found = case.params.amin(0) - slack, case.params.amax(0) + slack, case.call(rule)
    return bool(((found >= low) & (found <= high)).all())


def elementwise(rule: RuleEntry, case: Case) -> bool:
    """Rows one by one, everything that belongs to the whole parameter kept as it was."""
    kept = case.supplied(rule)
    rows = []
    for i in range(case.base.shape[0]):
        row = slice(i, i + 1)
        cut = case.importances[:, row] if case.importances.shape[1] > 1 else case.importances
        moving = {
            "params": case.params[:, row], "base": case.base[row], "draws": case.draws[:, row],
            "importances": cut, "grams": case.grams,
        }  # fmt: skip
        rows.append(rule.function(**{k: moving.get(k, kept[k]) for k in rule.inputs}, **case.options))
    return torch.equal(torch.cat(rows), case.call(rule))


def anchored(rule: RuleEntry, case: Case) -> bool:
    case = replace(case, params=case.base.expand_as(case.params).clone())
    return close(case.call(rule), case.base, case)


def scale_free(rule: RuleEntry, case: Case) -> bool:
    scaled = replace(case, importances=case.importances * 2.0**-20)
    return close(scaled.call(rule), case.call(rule), case)


def propagates(rule: RuleEntry, case: Case) -> bool:
    for poison in (math.nan, math.inf, -math.inf):
        for source in range(len(case.params)):
            params = case.params.clone()
            params[source, -1, -1] = poison
            if bool(torch.isfinite(replace(case, params=params).call(rule)[-1, -1])):
                return False
    return True


CHECKS: dict[Law, Callable[[RuleEntry, Case], bool]] = {
    Law.IDEMPOTENT: idempotent,
    Law.SYMMETRIC: symmetric,
    Law.BOUNDED: bounded,
    Law.ELEMENTWISE: elementwise,
    Law.ROWWISE: elementwise,
    Law.ANCHORED: anchored,
    Law.SCALE_FREE: scale_free,
    Law.PROPAGATES: propagates,
}
CLAIMS = [(name, law) for name in RULES for law in sorted(laws(RULES[name]))]


@pytest.mark.parametrize(("name", "law"), CLAIMS, ids=[f"{n}-{law.name}" for n, law in CLAIMS])
@given(data=st.data())
@quick
def test_laws(name: str, law: Law, data: st.DataObject) -> None:
    case = data.draw(cases(RULES[name]))
    assert CHECKS[law](RULES[name], case), law.value


@pytest.mark.parametrize("name", RULES)
@given(data=st.data())
@quick
def test_equals_its_reference(name: str, data: st.DataObject) -> None:
    rule = RULES[name]
    case = data.draw(cases(rule))
    wanted = REFERENCES[name](
        params=list(case.params.double().numpy()),
        weights=case.weights.tolist(),
        base=case.base.double().numpy(),
        importances=list(case.importances.double().expand_as(case.params).numpy()),
        grams=None if case.grams is None else list(case.grams.double().numpy()),
        draws=list(case.draws.numpy()),
        depth=case.depth,
        **case.options,
    )
    assert close(case.call(rule), torch.from_numpy(np.asarray(wanted)), case, 1e-4)


@pytest.mark.parametrize("name", RULES)
@given(data=st.data())
@quick
def test_manners(name: str, data: st.DataObject) -> None:
    """Inputs stay as they were, the result is new memory of the parameter's shape, and asking twice changes nothing."""
    rule = RULES[name]
    case = data.draw(cases(rule))
    tensors = {k: v for k, v in case.supplied(rule).items() if isinstance(v, Tensor)}
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    found = case.call(rule)
    assert all(torch.equal(before[key], tensors[key]) for key in tensors)
    assert found.shape == case.base.shape
    assert found.dtype == torch.float32
    assert found.untyped_storage().data_ptr() not in {
        t.untyped_storage().data_ptr() for t in tensors.values()
    }
    assert torch.equal(found, case.call(rule))


def test_every_rule_has_a_reference_and_nothing_else_has() -> None:
    assert set(REFERENCES) == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_declarations(name: str) -> None:
    rule = RULES[name]
    assert set(rule.inputs) <= set(INPUTS), "an input outside the closed set cannot be supplied"
    assert {"params", "weights"} <= set(rule.inputs)
    assert rule.summary.startswith("Returns")
    assert rule.facts["paper"]
    assert set(rule.facts.get("limits", {})) <= set(rule.options)
    text = inspect.getdoc(rule.function) or ""
    assert all(f"{option}:" in text for option in rule.options), "an option nobody explains"


def wrong(name: str, function: Callable[..., Tensor]) -> Entry[Any]:
    return describe(name, function, {})


def first_source(params: Tensor, weights: Tensor) -> Tensor:
    return params[0].clone()


def plain_sum(params: Tensor, weights: Tensor) -> Tensor:
    return params.sum(0)


def centred(params: Tensor, weights: Tensor) -> Tensor:
    return params.mean(0) - params.mean()


def absolute_floor(params: Tensor, importances: Tensor, weights: Tensor) -> Tensor:
    kept = importances.clamp(min=1e-6)
    return (params * kept).sum(0) / kept.sum(0).expand_as(params[0])


def middle(params: Tensor, weights: Tensor) -> Tensor:
    return params.nan_to_num(0.0, 0.0, 0.0).median(0).values


BROKEN: list[tuple[Law, Callable[..., Tensor]]] = [
    (Law.IDEMPOTENT, plain_sum),
    (Law.SYMMETRIC, first_source),
    (Law.BOUNDED, plain_sum),
    (Law.ELEMENTWISE, centred),
    (Law.ROWWISE, centred),
    (Law.ANCHORED, plain_sum),
    (Law.SCALE_FREE, absolute_floor),
    (Law.PROPAGATES, middle),
]


@pytest.mark.parametrize(("law", "function"), BROKEN, ids=[law.name for law, _ in BROKEN])
def test_the_laws_catch_a_rule_that_breaks_them(law: Law, function: Callable[..., Tensor]) -> None:
    rule = wrong("broken", function)
    g = torch.Generator().manual_seed(1)
    case = Case(
        params=torch.randn(3, 4, 5, generator=g),
        weights=torch.ones(3),
        base=torch.randn(4, 5, generator=g),
        importances=torch.rand(3, 4, 5, generator=g) * 1e-5,
        grams=None,
        draws=torch.rand(3, 4, 5, generator=g),
        options={},
    )
    assert not CHECKS[law](rule, case)


def test_every_law_has_a_check_and_a_culprit() -> None:
    assert set(CHECKS) == set(Law) == {law for law, _ in BROKEN}


def hand_made() -> Iterator[tuple[str, dict[str, Any], list[float]]]:
    """Two sources [1, 4] and [3, 0] from the base [1, 2], worked out by hand."""
    yield "average", {}, [2.0, 2.0]
    yield "average", {"weights": torch.tensor([3.0, 1.0])}, [1.5, 3.0]
    yield "task_arithmetic", {"scale": 0.5}, [2.0, 2.0]
    yield "task_arithmetic", {"scale": 1.0, "weights": torch.tensor([1.0, 0.5])}, [2.0, 3.0]
    yield "fisher", {"importances": torch.tensor([[1.0, 3.0], [3.0, 1.0]])}, [2.5, 3.0]
    yield "fisher", {"importances": torch.tensor([[0.0, 0.0], [0.0, 3.0]])}, [2.0, 0.0]
    yield "ties", {"density": 1.0}, [3.0, 2.0]
    yield "ties", {"density": 0.5}, [3.0, 2.0]
    yield "dare", {"draws": torch.tensor([[0.9, 0.1], [0.9, 0.9]]), "drop": 0.5}, [3.0, 0.0]
    yield "slerp", {"params": torch.tensor([[2.0, 0.0], [0.0, 2.0]])}, [math.sqrt(2)] * 2


@pytest.mark.parametrize(("name", "changes", "wanted"), list(hand_made()))
def test_worked_by_hand(name: str, changes: dict[str, Any], wanted: list[float]) -> None:
    rule = RULES[name]
    options = {k: changes.pop(k) for k in list(changes) if k in rule.options}
    case = Case(
        params=torch.tensor([[1.0, 4.0], [3.0, 0.0]]),
        weights=torch.ones(2),
        base=torch.tensor([1.0, 2.0]),
        importances=torch.ones(2, 2),
        grams=None,
        draws=torch.ones(2, 2),
        options=options,
    )
    found = replace(case, **changes).call(rule)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=0, atol=1e-5)


def test_regmean_fits_the_outputs_of_all_sources() -> None:
    """With α = 1 the sum of squared output errors is least: every other weight near it has a larger one."""
    g = torch.Generator().manual_seed(0)
    inputs, params = torch.randn(2, 50, 4, generator=g), torch.randn(2, 3, 4, generator=g)
    grams = inputs.transpose(1, 2) @ inputs / 50
    found = RULES["regmean"].function(params, grams, torch.ones(2), alpha=1.0, ridge=0.0)

    def error(weight: Tensor) -> float:
        return float(sum(((x @ weight.T - x @ w.T) ** 2).sum() for x, w in zip(inputs, params, strict=True)))

    best = error(found)
    assert all(best < error(found + 0.01 * torch.randn(3, 4, generator=g)) for _ in range(20))


def test_fisher_takes_tiny_importances_for_what_they_are() -> None:
    params, importances = torch.tensor([[0.0], [1.0]]), torch.tensor([[1e-30], [3e-30]])
    found = RULES["fisher"].function(params, importances, importances[:, 0], torch.ones(2))
    torch.testing.assert_close(found, torch.tensor([0.75]))
