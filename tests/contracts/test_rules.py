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
    crosses: Tensor | None = None

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
    others = inputs + 0.3 * torch.randn(inputs.shape, generator=g)
    seen = draw(st.booleans())
    importance_shape = draw(st.sampled_from([(n, 1, 1), (n, shape[0], 1), (n, 1, shape[1]), (n, *shape)]))
    importances = spread(g, *importance_shape).abs() * draw(st.sampled_from([0.0, 1e-12, 1.0, 1e12]))
    return Case(
        params=entries(g, n, *shape),
        weights=weights,
        base=entries(g, *shape),
        importances=importances,
        grams=inputs.transpose(1, 2) @ inputs / 9 if seen else None,
        crosses=inputs.transpose(1, 2) @ others / 9 if seen else None,
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
        crosses=None if case.crosses is None else case.crosses[back],
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
        crosses=None if case.crosses is None else list(case.crosses.double().numpy()),
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
    for name, (low, high) in rule.facts.get("search", {}).items():  # where a search may go is where the option may be
        rule.check_values({name: low})
        rule.check_values({name: high})
        assert low <= rule.options[name].default <= high
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
    yield "breadcrumbs", {"density": 1.0, "outliers": 0.0, "scale": 0.5}, [2.0, 2.0]
    yield "breadcrumbs", {"density": 0.5, "outliers": 0.0, "scale": 1.0}, [3.0, 2.0]
    yield "breadcrumbs", {"density": 1.0, "outliers": 0.5, "scale": 1.0}, [1.0, 2.0]
    yield "della", {"drop": 0.5, "epsilon": 0.0}, [5.0, 2.0]
    gone = {"draws": torch.tensor([[0.9, 0.9], [0.45, 0.39]])}
    yield "della", {**gone, "drop": 0.5, "epsilon": 0.2}, [1 + 2 / 0.6, 2 + 2 / 0.6]
    yield "lines", {"alpha": 1.0, "beta": 0.0}, [2.0, 2.0]
    yield "lines", {"alpha": 1.0, "beta": 0.5, "depth": 1.0}, [3.0, 2.0]
    yield "model_stock", {}, [1.0, 2.0]
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


def given_sources(params: Tensor, base: Tensor, **changes: Any) -> Case:
    return Case(
        params=params,
        weights=changes.pop("weights", torch.ones(len(params))),
        base=base,
        importances=torch.ones_like(params),
        grams=changes.pop("grams", None),
        draws=torch.full_like(params, 0.999),
        options=changes,
    )


SEVERAL = [name for name in RULES if "sources" not in RULES[name].facts]
SHAPES = [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SEVERAL)
def test_a_source_without_weight_is_as_if_not_given(name: str, shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(3)
    params, base = torch.randn(3, *shape, generator=g), torch.randn(shape, generator=g)
    with_it = given_sources(params, base, weights=torch.tensor([1.0, 0.0, 2.0]))
    without = given_sources(params[[0, 2]], base, weights=torch.tensor([1.0, 2.0]))
    assert close(with_it.call(RULES[name]), without.call(RULES[name]), with_it)


ONE = ["average", "actmerge", "wudi", "cart", "fisher", "karcher", "lines", "model_stock", "regmean", "ties"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ONE)
def test_one_source_comes_back(name: str, shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(4)
    options = {"lines": {"beta": 0.0}, "ties": {"density": 1.0}}.get(name, {})
    case = given_sources(torch.randn(1, *shape, generator=g), torch.randn(shape, generator=g), **options)
    assert close(case.call(RULES[name]), case.params[0], case)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_source_comes_back_from_its_singular_directions(shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(5)
    case = given_sources(torch.randn(1, *shape, generator=g), torch.randn(shape, generator=g))
    for name, options in (("tsv", {}), ("svc", {"scale": 1.0}), ("ace", {"level": 0.0})):
        changed = replace(case, options=options)
        assert close(changed.call(RULES[name]), case.params[0], case), name


def low_rank(g: torch.Generator, n: int, shape: tuple[int, int], rank: int) -> Tensor:
    return torch.randn(n, shape[0], rank, generator=g) @ torch.randn(n, rank, shape[1], generator=g)


MATRICES = [name for name in RULES if "elsewhere" in RULES[name].facts]


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
@pytest.mark.parametrize("name", MATRICES)
def test_task_vectors_of_low_rank(name: str, shape: tuple[int, int]) -> None:
    """Gram matrices have no inverse, sums no full rank; one task vector is nought, and two are equal."""
    g = torch.Generator().manual_seed(6)
    base = torch.randn(shape, generator=g)
    params = base + low_rank(g, 3, shape, 1)
    params = torch.cat([params, base[None], params[:1]])
    case = given_sources(params, base)
    wanted = REFERENCES[name](
        params=list(params.double().numpy()), base=base.double().numpy(), weights=[1.0] * 5
    )
    assert close(case.call(RULES[name]), torch.from_numpy(wanted), case, 1e-4)


@pytest.mark.parametrize("name", ["actmerge", "wudi", "ace"])
def test_without_changes_the_average(name: str) -> None:
    """Half of the columns move in no source: there nothing is known, and the mean is kept."""
    g = torch.Generator().manual_seed(7)
    base, changes = torch.randn(5, 8, generator=g), torch.randn(3, 5, 8, generator=g)
    changes[..., 4:] = 0.0
    found = given_sources(base + changes, base).call(RULES[name])
    torch.testing.assert_close(found[:, 4:], base[:, 4:])
    still = given_sources(base.expand(3, 5, 8).clone(), base).call(RULES[name])
    assert torch.equal(still, base)


@pytest.mark.parametrize("name", ["actmerge", "wudi", "ace"])
def test_a_large_ridge_gives_the_average(name: str) -> None:
    g = torch.Generator().manual_seed(8)
    case = given_sources(torch.randn(3, 4, 5, generator=g), torch.randn(4, 5, generator=g), ridge=1e8)
    if name == "ace":
        case = replace(case, options={"ridge": 1e8, "level": 0.0})
    assert close(case.call(RULES[name]), case.params.mean(0), case)


@pytest.mark.parametrize(("out", "width"), [(3, 40), (40, 3), (12, 25)])
def test_actmerge_is_regmean_with_other_grams(out: int, width: int) -> None:
    """Whichever way the system is solved: in the inputs or, where that is smaller, in the rows of all sources."""
    g = torch.Generator().manual_seed(9)
    case = given_sources(torch.randn(3, out, width, generator=g), torch.randn(out, width, generator=g))
    changes = case.params - case.base
    grams = changes.transpose(1, 2) @ changes
    wanted = RULES["regmean"].function(case.params, grams, case.weights, alpha=1.0, ridge=0.1, scale_grams="none")
    assert close(case.call(RULES["actmerge"]), wanted, case)
    equal = RULES["regmean"].function(
        case.params, grams, case.weights, alpha=1.0, ridge=0.01, scale_grams="trace"
    )
    assert close(case.call(RULES["wudi"]), equal, case)


def test_wudi_leaves_every_source_least_disturbed() -> None:
    g = torch.Generator().manual_seed(10)
    base, params = torch.randn(4, 3, generator=g), torch.randn(3, 4, 3, generator=g)
    changes = (params - base).double()
    found = given_sources(params, base, ridge=1e-8).call(RULES["wudi"]) - base

    def interference(change: Tensor) -> float:
        return sum(float(((change - c) @ c.T).square().sum() / c.square().sum()) for c in changes)

    best = interference(found.double())
    assert all(best < interference(found + 0.01 * torch.randn(4, 3, generator=g)) for _ in range(20))


def test_tsv_of_tasks_that_share_nothing_is_their_sum() -> None:
    base, changes = torch.zeros(4, 4), torch.zeros(2, 4, 4)
    changes[0, 0, 0], changes[0, 1, 1], changes[1, 2, 3], changes[1, 3, 2] = 4.0, 3.0, 2.0, 1.0
    torch.testing.assert_close(given_sources(changes, base).call(RULES["tsv"]), changes.sum(0))


def test_iso_levels_the_singular_values() -> None:
    g = torch.Generator().manual_seed(11)
    base, params = torch.zeros(5, 7), torch.randn(3, 5, 7, generator=g)
    found = torch.linalg.svdvals(given_sources(params, base, scale=1.0).call(RULES["iso"]))
    wanted = torch.linalg.svdvals(params.sum(0)).mean()
    torch.testing.assert_close(found, wanted.expand(5))


def test_svc_undoes_what_equal_tasks_add_up() -> None:
    """Three equal sources summed are three times too far; calibrated they are where each of them is."""
    g = torch.Generator().manual_seed(12)
    base, one = torch.randn(5, 7, generator=g), torch.randn(5, 7, generator=g)
    case = given_sources(one.expand(3, 5, 7).clone(), base, scale=1.0)
    assert close(case.call(RULES["svc"]), one, case)


def test_ace_levels_the_strongest_directions() -> None:
    base, params = torch.zeros(4, 4), torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))[None]
    found = given_sources(params, base, level=0.5).call(RULES["ace"])
    torch.testing.assert_close(found, torch.diag(torch.tensor([6.0, 6.0, 2.0, 1.0])))


def test_karcher_of_two_is_slerp() -> None:
    g = torch.Generator().manual_seed(13)
    params = torch.randn(2, 4, 5, generator=g)
    params[1] *= params[0].norm() / params[1].norm()
    weights = torch.tensor([1.0, 3.0])
    case = given_sources(params, params[0], weights=weights)
    assert close(case.call(RULES["karcher"]), RULES["slerp"].function(params, weights), case)


def test_karcher_where_there_is_no_direction() -> None:
    zeros, one = torch.zeros(2, 3), torch.ones(2, 3)
    for sources in ([zeros, zeros], [one, -one], [zeros, one, -one]):
        case = given_sources(torch.stack(sources), zeros)
        assert close(case.call(RULES["karcher"]), zeros, case)
    half = given_sources(torch.stack([zeros, one]), zeros)
    assert close(half.call(RULES["karcher"]), one / 2, half)


@pytest.mark.parametrize("n", [2, 4])
def test_model_stock_by_the_angle(n: int) -> None:
    """Right angles: the base. Equal directions: the average. 60 degrees of two: two thirds of the way."""
    base, stock = torch.zeros(4), RULES["model_stock"]
    apart, alike = given_sources(torch.eye(n, 4), base), given_sources(torch.ones(n, 4), base)
    assert close(apart.call(stock), base, apart)
    assert close(alike.call(stock), torch.ones(4), alike)
    sixty = given_sources(torch.tensor([[1.0, 0, 0, 0], [0.5, math.sqrt(3) / 2, 0, 0]]), base)
    assert close(sixty.call(stock), sixty.params.mean(0) * 2 / 3, sixty)


def test_regmean_as_published_and_with_grams_that_have_no_inverse() -> None:
    g = torch.Generator().manual_seed(14)
    inputs, params = torch.randn(2, 3, 6, generator=g), torch.randn(2, 4, 6, generator=g)
    grams = inputs.transpose(1, 2) @ inputs
    found = RULES["regmean"].function(params, grams, torch.ones(2), alpha=0.9, ridge=0.0, scale_grams="none")
    shrunk = (0.9 * grams + 0.1 * torch.diag_embed(grams.diagonal(dim1=1, dim2=2))).double()
    published = torch.linalg.inv(shrunk.sum(0)) @ (shrunk @ params.double().transpose(1, 2)).sum(0)
    torch.testing.assert_close(found, published.T.float(), rtol=1e-4, atol=1e-5)
    # Six inputs at most are heard of in one source of rank 3: where it says nothing, it says the mean.
    same = grams[:1].expand(2, 6, 6)
    bare = RULES["regmean"].function(params, same, torch.ones(2), alpha=1.0, ridge=0.0, scale_grams="none")
    torch.testing.assert_close(bare, params.mean(0), rtol=1e-4, atol=1e-5)


def test_grams_of_equal_trace_count_alike() -> None:
    g = torch.Generator().manual_seed(15)
    inputs, params = torch.randn(2, 20, 5, generator=g), torch.randn(2, 4, 5, generator=g)
    grams = inputs.transpose(1, 2) @ inputs
    louder = grams * torch.tensor([1.0, 1000.0])[:, None, None]

    def merged(some: Tensor, scale: str) -> Tensor:
        found: Tensor = RULES["regmean"].function(params, some, torch.ones(2), scale_grams=scale)
        return found

    torch.testing.assert_close(merged(louder, "trace"), merged(grams, "trace"))
    assert float((merged(louder, "none") - params[1]).abs().max()) < 0.02 * float((params[0] - params[1]).abs().max())


def test_regmean_fits_the_outputs_of_all_sources() -> None:
    """With α = 1 the sum of squared output errors is least: every other weight near it has a larger one."""
    g = torch.Generator().manual_seed(0)
    inputs, params = torch.randn(2, 50, 4, generator=g), torch.randn(2, 3, 4, generator=g)
    grams = inputs.transpose(1, 2) @ inputs / 50
    found = RULES["regmean"].function(params, grams, torch.ones(2), alpha=1.0, ridge=0.0, scale_grams="none")

    def error(weight: Tensor) -> float:
        return float(sum(((x @ weight.T - x @ w.T) ** 2).sum() for x, w in zip(inputs, params, strict=True)))

    best = error(found)
    assert all(best < error(found + 0.01 * torch.randn(3, 4, generator=g)) for _ in range(20))


def test_fisher_takes_tiny_importances_for_what_they_are() -> None:
    params, importances = torch.tensor([[0.0], [1.0]]), torch.tensor([[1e-30], [3e-30]])
    found = RULES["fisher"].function(params, importances, importances[:, 0], torch.ones(2))
    torch.testing.assert_close(found, torch.tensor([0.75]))
