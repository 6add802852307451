"""What candidates answer: the sources apart, together, side by side; a student among the labels of a task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from plait.amalgamation.label_space import union
from plait.checkpoints.checkpoint import open_checkpoint
from plait.comparison.answers import Reading, Sources, labels_in, side_by_side
from plait.comparison.held_out import over_all
from plait.comparison.material import gather
from plait.comparison.measures import calibration, latency, size_of, size_of_sources
from plait.data import Examples
from plait.evaluation import outcome_of, outcome_scores
from plait.evaluation.outcome import Outcome
from tests.unit.comparison.conftest import SAME, TASKS, recipe_in


def test_each_source_answers_its_own_task(different: Path) -> None:
    material = gather(recipe_in(different, TASKS))
    apart = Sources(material, Reading()).apart()
    for test, source in zip(material.tests, material.sources, strict=True):
        alone = outcome_of(source.model(), source.tokenizer(), test.rows)
        assert outcome_scores(apart[test.name]) == outcome_scores(alone)
        assert outcome_scores(alone)["accuracy"] == pytest.approx(44 / 48)


def test_sources_answer_together_whatever_the_order_of_their_labels(same: Path) -> None:
    material = gather(recipe_in(same, SAME))
    sources = Sources(material, Reading())
    together = sources.together()
    test = material.tests[1]
    expected = []
    for source in material.sources:
        logits = torch.stack(list(outcome_of(source.model(), source.tokenizer(), test.rows).logits or ()))
        expected.append(logits[:, [(source.labels or ()).index(name) for name in test.labels or ()]])
    mean = torch.stack(expected).mean(0)
    assert torch.allclose(torch.stack(list(together[test.name].logits or ())), mean, atol=1e-5)


def test_rows_over_all_labels_are_answered_side_by_side(different: Path) -> None:
    space = union(dict(TASKS))
    texts = tuple(json.loads(line)["text"] for line in (different / "topic.test.jsonl").read_text().splitlines())
    test = over_all("all", Examples(texts, labels=("art", *["bad"] * (len(texts) - 1))), space)
    logits = [torch.randn(len(texts), 3), torch.randn(len(texts), 2)]
    found = side_by_side(logits, space, test)
    wanted = torch.cat(logits, 1).log_softmax(-1)
    assert torch.allclose(torch.stack(list(found.logits or ())), wanted, atol=1e-5)


def test_a_student_is_asked_for_the_labels_of_the_task(different: Path) -> None:
    material = gather(recipe_in(different, TASKS))
    assert labels_in(material, material.tests[1]) == list(TASKS["topic"])


def test_calibration_counts_every_row_once() -> None:
    logits = [torch.tensor([2.0, 0.0]), torch.tensor([0.1, 0.0]), torch.tensor([0.0, 3.0])]
    outcome = Outcome(Examples(("a", "b", "c"), labels=(0, 1, 1)), logits, problem="single_label_classification")
    found = calibration(outcome)
    assert found is not None
    assert sum(part["count"] for part in found["bins"]) == 3
    gaps = sum(part["count"] * abs(part["confidence"] - part["accuracy"]) for part in found["bins"]) / 3
    assert found["ece"] == pytest.approx(gaps)
    assert calibration(Outcome(outcome.examples, logits, problem="regression")) is None


def test_latency_times_texts_alone_and_in_batches() -> None:
    asked: list[int] = []
    found = latency(lambda rows: asked.append(len(rows)), Examples(("a", "b", "c"), labels=(0, 1, 0)))
    assert asked == [1] * 16 + [32] * 3
    assert found.keys() == {"1", "32"}


def test_sizes_are_those_of_the_files(different: Path) -> None:
    source = open_checkpoint(different / "mood")
    parameters, size = size_of(different / "mood")
    own, bytes_ = size_of_sources([source])
    assert parameters == own == sum(p.numel() for p in source.model().parameters())
    assert bytes_ == 4 * own
    assert size > bytes_
