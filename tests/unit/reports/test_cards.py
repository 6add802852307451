"""Scores relative to sources, and the model card."""

from __future__ import annotations

import pytest
import yaml

from plait.evaluation.scores import Evaluation, TaskScores
from plait.reports.cards import model_card
from plait.reports.record import Manifest, Task


def test_relative_is_to_the_best_source() -> None:
    scores = TaskScores({"accuracy": 0.6}, "accuracy", 10, {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.8}})
    assert scores.relative == pytest.approx(0.75)


@pytest.mark.parametrize("sources", [{}, {"a": {"accuracy": 0.0}}])
def test_nothing_to_be_relative_to(sources: dict[str, dict[str, float]]) -> None:
    scores = TaskScores({"accuracy": 0.6}, "accuracy", 10, sources)
    assert scores.relative is None
    assert Evaluation("m", {"t": scores}).mean_relative is None
    assert Evaluation("m", {"t": scores}).rows()[0]["relative"] == "–"


def test_mean_over_tasks() -> None:
    one = TaskScores({"accuracy": 0.5}, "accuracy", 10, {"a": {"accuracy": 1.0}})
    two = TaskScores({"pearson": 0.9}, "pearson", 10, {"b": {"pearson": 0.9}})
    found = Evaluation("m", {"one": one, "two": two})
    assert found.mean_relative == pytest.approx(0.75)
    assert found.to_dict()["tasks"]["two"]["relative"] == pytest.approx(1.0)
    assert found["one"]["accuracy"] == 0.5


def test_card_holds_recipe_tasks_and_scores() -> None:
    task = Task(
        "mood", "BertForSequenceClassification", "sequence_classification", None, ("a|b", "c"), ("x",)
    )
    found = Evaluation("m", {"mood": TaskScores({"accuracy": 0.5}, "accuracy", 4, {"x": {"accuracy": 1.0}})})
    recipe = {"combine": "merge", "method": {"name": "fisher"}, "output": "out/merged"}
    card = model_card(
        Manifest(
            {"mood": task},
            {"x": {"origin": "ckpt/x", "digest": "0" * 32}},
            recipe,
            {"plait": "1"},
            {},
            found.to_dict(),
        )
    )
    assert card.count("\n# merged\n") == 1
    assert "| mood | accuracy | 0.500 | 50.0 % | 4 |" in card
    assert "a\\|b" in card
    block = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block) == recipe
