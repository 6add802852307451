"""Sizes and costs, known before anything is loaded."""

from __future__ import annotations

import pytest
from transformers import BertConfig

from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.cost import inference_cost, size, training_cost
from tests.models import FAMILIES
from tests.reference.ensembles_model import bert_base
from tests.unit.ensembles.test_modeling import TASKS, depths, ensemble


def described(members: int, shared: int | str = "all") -> EnsembleConfig:
    return EnsembleConfig(BertConfig(), members=members, shared_layers=shared, head="tanh", num_labels=2)


def test_eight_heads_on_bert_base() -> None:
    found = size(described(8))
    assert found.parameters == 114_219_280 == bert_base(8, 12, 2, pooler=True)
    assert found.live == bert_base(8, 12, 2, pooler=False)
    assert found.separate == 880_594_960
    assert found.megabytes == pytest.approx(456.877, abs=1e-3)


def test_bert_base_itself() -> None:
    head = 592_130
    assert size(described(1)).parameters - head == 109_482_240 == bert_base(0, 12, 2, pooler=True)


@pytest.mark.parametrize(
    ("shared", "millions"), [(11, 163.2), (10, 212.9), (8, 312.1), (6, 411.3), (0, 709.0)]
)
def test_private_tops_of_bert_base(shared: int, millions: float) -> None:
    found = size(described(8, shared))
    assert found.live == found.parameters == bert_base(8, shared, 2, pooler=False)
    assert round(found.live / 1e6, 1) == millions


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_counted_is_what_there_is(family: str) -> None:
    for kind, task in TASKS.items():
        for shared in depths(family):
            for head in ("linear", "tanh"):
                model = ensemble(family, kind, shared_layers=shared, head=head)
                found = size(model.config, task)
                assert found.parameters == sum(p.numel() for p in model.parameters())
                assert found.live == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("members", "replicate_at", "cost"), [(1, 0, 3), (4, 0, 12), (4, 12, 3), (4, 6, 7.5), (8, 6, 13.5)]
)
def test_cost_of_training(members: int, replicate_at: int, cost: float) -> None:
    assert training_cost(members, 12, replicate_at) == cost


def test_cost_of_replaying_and_predicting() -> None:
    assert training_cost(4, 12, 0, replay=True) == 16
    assert training_cost(4, 12, 6, replay=True) == 1.5 + 8
    assert [inference_cost(8, 12, k) for k in (12, 6, 0)] == [1, 4.5, 8]
