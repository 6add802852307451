"""One model of several weights: their mean, the greedy choice among them, noise to branch by, and labels by name."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.data import Examples
from plait.ensembles.averaging import averaged, branched, greedy, likeness, mean_state
from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.distillation import columns, tables
from plait.ensembles.modeling import ENSEMBLES
from plait.errors import MergeError
from tests.models import tiny_config
from tests.reference import ensembles_methods as reference


def model(seed: int) -> Any:
    config = EnsembleConfig(encoder=tiny_config("bert", "sequence"), members=1, id2label={0: "a", 1: "b"})
    torch.manual_seed(seed)
    return ENSEMBLES["sequence_classification"](config)


def test_the_mean_of_states_is_the_mean_of_their_numbers() -> None:
    states = [{"w": torch.randn(3, 2, dtype=torch.float64), "n": torch.tensor([7])} for _ in range(3)]
    found = mean_state(states)
    for i, j in itertools.product(range(3), range(2)):
        assert float(found["w"][i, j]) == pytest.approx(sum(float(s["w"][i, j]) for s in states) / 3, abs=1e-15)
    assert found["n"].tolist() == [7]
    assert torch.equal(mean_state(states[:1])["w"], states[0]["w"])


def test_averaging_changes_none_of_its_models() -> None:
    models = [model(seed) for seed in (0, 1)]
    before = [{name: t.clone() for name, t in m.state_dict().items()} for m in models]
    made = averaged(models)
    for name, tensor in made.state_dict().items():
        torch.testing.assert_close(tensor, (before[0][name] + before[1][name]) / 2)
    assert all(torch.equal(t, before[i][n]) for i, m in enumerate(models) for n, t in m.state_dict().items())
    assert not made.training


@given(st.data())
def test_a_greedy_soup_is_that_of_the_recipe(data: Any) -> None:
    count = data.draw(st.integers(1, 4))
    subsets = [frozenset(s) for k in range(1, count + 1) for s in itertools.combinations(range(count), k)]
    table = {s: data.draw(st.sampled_from([0.1, 0.5, 0.5, 0.9])) for s in subsets}
    scores = [table[frozenset({j})] for j in range(count)]
    asked: list[frozenset[int]] = []

    def score_of(chosen: Any) -> float:
        asked.append(frozenset(chosen))
        return table[frozenset(chosen)]

    found = greedy(scores, score_of)
    assert set(found) == reference.greedy_soup(scores, table)
    assert found[0] == scores.index(max(scores))
    assert len(asked) == count - 1


def test_noise_is_in_proportion_to_each_tensor() -> None:
    state = {"wide": torch.randn(400, 50) * 3, "narrow": torch.randn(400, 50) * 0.01, "flat": torch.zeros(9),
             "count": torch.tensor([3])}  # fmt: skip
    found = branched(state, 0.1, torch.Generator().manual_seed(0))
    for name in ("wide", "narrow"):
        moved = (found[name] - state[name]).std() / state[name].std()
        assert float(moved) == pytest.approx(0.1, rel=0.03)
    assert torch.equal(found["flat"], state["flat"])
    assert torch.equal(found["count"], state["count"])
    again = branched(state, 0.1, torch.Generator().manual_seed(0))
    other = branched(state, 0.1, torch.Generator().manual_seed(1))
    assert torch.equal(found["wide"], again["wide"])
    assert not torch.equal(found["wide"], other["wide"])
    assert all(torch.equal(t, state[n]) for n, t in branched(state, 0.0, torch.Generator()).items())


def test_heads_that_started_alike_are_alike() -> None:
    first, other = model(0), model(1)
    near = averaged([first])
    with torch.no_grad():
        near.get_parameter("heads.out.weight").mul_(1.3).add_(0.001)
    assert likeness([first, near]) > 0.9
    assert likeness([first, near, other]) < 0.5
    assert likeness([first]) == 1


def test_labels_of_teachers_are_found_by_name() -> None:
    assert columns("t", ("neg", "pos"), ("pos", "neg")) == [1, 0]
    assert columns("t", ("Neg", "POS"), ("pos", "neg")) == [1, 0]
    assert columns("t", ("LABEL_0", "LABEL_1"), ("pos", "neg")) == [0, 1]
    assert columns("t", ("pos", "neg"), ("LABEL_0", "LABEL_1")) == [0, 1]
    assert columns("t", None, None) == [0]
    with pytest.raises(MergeError, match="t lacks neutral; expected a model of the labels neg; neutral; pos"):
        columns("t", ("neg", "pos"), ("neg", "neutral", "pos"))
    with pytest.raises(MergeError, match="t has neutral besides"):
        columns("t", ("neg", "neutral", "pos"), ("neg", "pos"))
    with pytest.raises(MergeError, match="t lacks pos and has good besides"):
        columns("t", ("neg", "good"), ("neg", "pos"))


@pytest.mark.parametrize(
    ("problem", "labels", "wanted"),
    [
        ("single_label_classification", (2, 0), [2, 0, -100]),
        ("regression", (0.5, 1.5), [0.5, 1.5, 0.0]),
        ("multi_label_classification", ((1, 0, 0), (0, 1, 1)), [[1, 0, 0], [0, 1, 1], [0, 0, 0]]),
    ],
)
def test_a_row_per_text_of_label_and_answers(problem: Any, labels: Any, wanted: Any) -> None:
    texts = Examples(("a", "b", "c"), labels=labels)
    classes = 1 if problem == "regression" else 3
    teachers = [torch.randn(3, classes) for _ in range(2)]
    found = tables(texts, 2, teachers, problem, classes)
    assert found["labels"].tolist() == wanted
    assert found["labelled"].tolist() == [True, True, False]
    assert found["teachers"].shape == (3, 2, classes)
    assert torch.equal(found["teachers"][:, 1], teachers[1])
