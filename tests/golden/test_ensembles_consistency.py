"""Numbers that must not move: four members, three logits, worked out once from the definitions."""

from __future__ import annotations

import pytest
import torch

from plait.ensembles.consistency import ensemble, pairwise
from plait.ensembles.diversity import diversity

LOGITS = torch.tensor(
    [[[1.0, 0.0, -1.0]], [[0.0, 0.5, 0.0]], [[2.0, -1.0, 0.0]], [[0.0, 0.0, 0.0]]], dtype=torch.float64
)


@pytest.mark.parametrize(
    ("problem", "mean", "pairs", "gain"),
    [
        ("single_label_classification", 0.29907292366779753, 0.7975277964474602, 0.16333669564027933),
        ("multi_label_classification", 0.24644206610119276, 0.6571788429365143, 0.1277956191134286),
        ("regression", 1.171875, 3.125, 0.5859375),
    ],
)
def test_regularisers(problem: str, mean: float, pairs: float, gain: float):
    assert float(ensemble(LOGITS, problem)) == pytest.approx(mean, abs=1e-13)
    assert float(pairwise(LOGITS, problem)) == pytest.approx(pairs, abs=1e-13)
    assert diversity(LOGITS, None, problem)["diversity"] == pytest.approx(gain, abs=1e-13)


def test_diversity():
    found = diversity(LOGITS, torch.tensor([1]))
    assert found["mutual_information"] == pytest.approx(0.13240681978490898, abs=1e-13)
    assert found["disagreement"] == pytest.approx(0.5)
    assert found["true_probability_variance"] == pytest.approx(0.022421743212412876, abs=1e-13)
    assert found["oracle_accuracy"] == 1.0
