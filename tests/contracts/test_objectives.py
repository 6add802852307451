"""What every registered objective promises: its reference, its manners, gradients that stay finite."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plait.amalgamation import adapters, objectives
from plait.amalgamation.objective import INPUTS, OBJECTIVES, ObjectiveEntry
from tests.reference.amalgamation import OBJECTIVES as REFERENCES

quick = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
PER_TEACHER = ("teacher_logits", "columns", "teacher_features", "teacher_layers")
PER_TEXT = ("student_logits", "target", "weight", "student_features", "student_layers")


@dataclass(frozen=True)
class Case:
    """One batch, with the options of one objective."""

    student_logits: Tensor
    target: Tensor
    weight: Tensor
    teacher_logits: list[Tensor]
    columns: list[Tensor]
    student_features: Tensor
    teacher_features: list[Tensor]
    student_layers: Tensor
    teacher_layers: list[Tensor]
    adapters: nn.Module | None
    options: dict[str, Any]

    def values(self, objective: ObjectiveEntry) -> dict[str, float]:
        return {name: float(term.detach()) for name, term in self.call(objective).items()}

    def call(self, objective: ObjectiveEntry) -> dict[str, Tensor]:
        inputs = {name: getattr(self, name) for name in objective.inputs}
        return dict(objective.function(**inputs, **self.options))

    def tensors(self) -> list[Tensor]:
        every: list[Tensor] = []
        for name in (*PER_TEXT, *PER_TEACHER):
            value = getattr(self, name)
            every += [value] if isinstance(value, Tensor) else value
        return every


def options_of(draw: st.DrawFn, objective: ObjectiveEntry) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, option in objective.options.items():
        if choices := get_args(option.annotation):
            chosen[name] = draw(st.sampled_from(choices))
        elif draw(st.booleans()):
            low, high = objective.facts.get("limits", {}).get(name, (0.0, 3.0))
            chosen[name] = draw(st.sampled_from([v for v in (0.5, 1.0, 3.0) if low <= v <= high]))
    return chosen


@st.composite
def cases(draw: st.DrawFn, objective: ObjectiveEntry) -> Case:
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    b, union, teachers = draw(st.integers(1, 5)), draw(st.integers(2, 6)), draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(2, 4), min_size=teachers, max_size=teachers))
    widths = draw(st.lists(st.integers(2, 5), min_size=teachers, max_size=teachers))
    depths = draw(st.lists(st.integers(1, 4), min_size=teachers, max_size=teachers))
    width, depth = draw(st.integers(2, 5)), draw(st.integers(1, 4))
    torch.manual_seed(draw(st.integers(0, 1000)))
    return Case(
        student_logits=torch.randn(b, union, generator=g) * draw(st.sampled_from([1.0, 5.0])),
        target=torch.softmax(torch.randn(b, union, generator=g) * 3, -1),
        weight=torch.rand(b, generator=g),
        teacher_logits=[torch.randn(b, c, generator=g) * 3 for c in sizes],
        columns=[torch.randint(union, (c,), generator=g) for c in sizes],
        student_features=torch.randn(b, width, generator=g),
        teacher_features=[torch.randn(b, w, generator=g) * 7 + 1 for w in widths],
        student_layers=torch.randn(b, depth + 1, width, generator=g),
        teacher_layers=[torch.randn(b, d + 1, w, generator=g) for d, w in zip(depths, widths, strict=True)],
        adapters=adapters.build(objective.name, width, depth, widths),
        options=options_of(draw, objective),
    )


def plain(layer: nn.Module) -> tuple[Any, Any]:
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()


def plain_adapters(module: nn.Module | None) -> Any:
    if isinstance(module, adapters.Alignment):
        return [[plain(one) for one in maps.children()] for maps in module.maps]
    if isinstance(module, adapters.CommonSpace):

        def linears(part: nn.Module) -> list[tuple[Any, Any]]:
            return [plain(m) for m in part.modules() if isinstance(m, nn.Linear)]

        return {
            "student": linears(module.student)[0],
            "teachers": [linears(part)[0] for part in module.teachers],
            "shared": linears(module.shared),
            "back": [linears(part) for part in module.back],
        }
    return None


@pytest.mark.parametrize("name", OBJECTIVES)
@given(data=st.data())
@quick
def test_equals_its_reference(name: str, data: st.DataObject) -> None:
    objective = OBJECTIVES[name]
    case = data.draw(cases(objective))
    arrays: dict[str, Any] = {}
    for key in objective.inputs:
        value = getattr(case, key)
        if key == "adapters":
            arrays[key] = plain_adapters(value)
        elif key == "columns":
            arrays[key] = [own.tolist() for own in value]
        elif isinstance(value, Tensor):
            arrays[key] = value.double().numpy()
        else:
            arrays[key] = [one.double().numpy() for one in value]
    wanted = REFERENCES[name](**arrays, **case.options)
    assert case.values(objective) == pytest.approx(wanted, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(data=st.data())
@quick
def test_texts_and_teachers_in_another_order(name: str, data: st.DataObject) -> None:
    objective = OBJECTIVES[name]
    case = data.draw(cases(objective))
    moved = replace(
        case,
        **{key: getattr(case, key).flip(0) for key in PER_TEXT},
        **{
            key: [one.flip(0) if key != "columns" else one for one in reversed(getattr(case, key))]
            for key in PER_TEACHER
        },
    )
    if isinstance(case.adapters, adapters.Alignment):
        turned = adapters.Alignment(2, 1, [2])
        turned.maps = nn.ModuleList(reversed(list(case.adapters.maps)))
        moved = replace(moved, adapters=turned)
    if isinstance(case.adapters, adapters.CommonSpace):
        space = adapters.CommonSpace(2, 1, [2])
        space.student, space.shared = case.adapters.student, case.adapters.shared
        space.teachers = nn.ModuleList(reversed(list(case.adapters.teachers)))
        space.back = nn.ModuleList(reversed(list(case.adapters.back)))
        moved = replace(moved, adapters=space)
    assert moved.values(objective) == pytest.approx(case.values(objective), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(data=st.data(), shift=st.sampled_from([-20.0, 4.0]))
@quick
def test_manners(name: str, data: st.DataObject, shift: float) -> None:
    """Inputs stay as they were, scalar float32 terms, and a constant on the student's logits is nothing."""
    objective = OBJECTIVES[name]
    case = data.draw(cases(objective))
    before = [one.clone() for one in case.tensors()]
    found = case.call(objective)
    assert all(torch.equal(a, b) for a, b in zip(before, case.tensors(), strict=True))
    assert all(term.shape == () and term.dtype == torch.float32 for term in found.values())
    moved = replace(case, student_logits=case.student_logits + shift).call(objective)
    assert all(torch.isclose(moved[key], found[key], rtol=1e-3, atol=1e-4) for key in found)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_at_extreme_outputs(name: str, size: float, precision: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    student = (torch.randn(4, 5, generator=g) * size).to(precision).requires_grad_()
    features = (torch.randn(4, 6, generator=g) * size).to(precision).requires_grad_()
    layers = (torch.randn(4, 3, 6, generator=g) * size).to(precision).requires_grad_()
    case = Case(
        student_logits=student,
        target=torch.eye(5)[:4],
        weight=torch.ones(4),
        teacher_logits=[torch.randn(4, 3, generator=g) * size, torch.randn(4, 2, generator=g) * size],
        columns=[torch.tensor([0, 1, 2]), torch.tensor([3, 4])],
        student_features=features,
        teacher_features=[torch.randn(4, 3, generator=g).half() * min(size, 1e3)] * 2,
        student_layers=layers,
        teacher_layers=[torch.randn(4, 2, 3, generator=g).half() * min(size, 1e3)] * 2,
        adapters=adapters.build(name, 6, 2, [3, 3]),
        options={},
    )
    loss = torch.stack(list(case.call(OBJECTIVES[name]).values())).sum()
    loss.backward()
    assert bool(torch.isfinite(loss))
    trained = [student, features, layers, *(case.adapters.parameters() if case.adapters else ())]
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in trained)
    assert student.grad is not None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_mixed_precision_changes_little(name: str) -> None:
    """Adapters run in bfloat16 then; divergences and distances do not."""
    g = torch.Generator().manual_seed(4)
    torch.manual_seed(4)
    case = Case(
        student_logits=torch.randn(8, 4, generator=g),
        target=torch.softmax(torch.randn(8, 4, generator=g), -1),
        weight=torch.rand(8, generator=g),
        teacher_logits=[torch.randn(8, 2, generator=g)] * 2,
        columns=[torch.tensor([0, 1]), torch.tensor([2, 3])],
        student_features=torch.randn(8, 6, generator=g),
        teacher_features=[torch.randn(8, 5, generator=g).half()] * 2,
        student_layers=torch.randn(8, 3, 6, generator=g),
        teacher_layers=[torch.randn(8, 3, 5, generator=g).half()] * 2,
        adapters=adapters.build(name, 6, 2, [5, 5]),
        options={},
    )
    wanted = case.values(OBJECTIVES[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = case.call(OBJECTIVES[name])
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert {k: float(v.detach()) for k, v in terms.items()} == pytest.approx(wanted, rel=0.03, abs=0.01)


def test_an_objective_is_one_file() -> None:
    files = {file.stem for file in Path(objectives.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_student_that_already_does_it_has_nothing_to_learn(name: str) -> None:
    """One teacher, and a student with its logits."""
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 4, generator=g)
    student = logits.clone().requires_grad_()
    case = Case(
        student_logits=student,
        target=torch.softmax(logits, -1),
        weight=torch.rand(6, generator=g),
        teacher_logits=[logits],
        columns=[torch.arange(4)],
        student_features=torch.randn(6, 3, generator=g),
        teacher_features=[torch.randn(6, 3, generator=g)],
        student_layers=torch.randn(6, 3, 3, generator=g),
        teacher_layers=[torch.randn(6, 3, 3, generator=g)],
        adapters=adapters.build(name, 3, 2, [3]),
        options={},
    )
    term = case.call(OBJECTIVES[name])["divergence"]
    term.backward()
    assert abs(float(term.detach())) < 1e-6
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6


def test_every_objective_has_a_reference_and_nothing_else_has() -> None:
    assert set(REFERENCES) == set(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_declarations(name: str) -> None:
    objective = OBJECTIVES[name]
    assert set(objective.inputs) <= set(INPUTS), "an input outside the closed set cannot be supplied"
    assert "student_logits" in objective.inputs
    assert objective.summary.startswith("Returns")
    assert objective.facts["paper"].startswith("arXiv:")
    needed = {key.partition("_")[2] for key in objective.inputs}
    assert objective.facts["keep"] == next((k for k in ("layers", "features") if k in needed), "none")
    assert ("adapters" in objective.facts) == ("adapters" in objective.inputs)
    assert set(objective.facts.get("limits", {})) <= set(objective.options)
    text = inspect.getdoc(objective.function) or ""
    assert all(f"{word}:" in text for word in (*objective.inputs, *objective.options)), "nobody explains it"
