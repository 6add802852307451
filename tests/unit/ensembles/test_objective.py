"""Perturbations inside real models: all members at once, one after the other, and one by one are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.consistency import ensemble as consistency
from plait.ensembles.divergences import divergence
from plait.ensembles.modeling import ENSEMBLES
from plait.ensembles.perturbation import PERTURBATIONS, Place, perturber, place
from plait.ensembles.perturbations.adversarial import project
from plait.ensembles.perturbations.word_dropout import blanked, droppable_words
from tests.models import tiny_config

M, FAMILIES = 3, ("bert", "albert", "deberta-v2", "modernbert")
IDS = torch.tensor([[2, 10, 11, 12, 13, 3], [2, 14, 15, 3, 0, 0], [2, 16, 17, 18, 3, 0]])
REAL = IDS != 0
INPUTS = {"input_ids": IDS, "attention_mask": REAL.long()}
ACTING = [n for n in PERTURBATIONS if place(n, {}) in (Place.HIDDEN, Place.EMBEDDINGS)]
SINGLE = "single_label_classification"


def model_of(family: str, kind: str = "sequence", *, shared: int = 1, dropout: float = 0.0) -> Any:
    encoder = tiny_config(family, kind)
    for name in vars(encoder):
        if name.endswith(("dropout", "dropout_prob")):
            setattr(encoder, name, dropout)
    labels = {i: f"label {i}" for i in range(3)}
    config = EnsembleConfig(encoder=encoder, members=M, shared_layers=shared, id2label=labels)
    torch.manual_seed(0)
    model = ENSEMBLES[f"{kind}_classification"](config).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return model.train()


def bound(
    model: Any, name: str, options: dict[str, Any] | None = None, *, tokens: bool = False
) -> Callable[..., Tensor]:
    droppable = droppable_words(IDS, REAL, special=[0, 2, 3])
    with torch.no_grad():
        blank = model.embed({**INPUTS, "input_ids": blanked(IDS, droppable, 4)})
    given = {"mask": REAL, "droppable": droppable, "blank": blank, "counted": REAL if tokens else None}
    seeds = [torch.Generator().manual_seed(j) for j in range(M)]
    return perturber(name, options or {}, seeds, **given, problem=SINGLE)


def depth_of(name: str) -> int:
    return 0 if place(name, {}) is Place.EMBEDDINGS else 1


def logits_of(model: Any, name: str, kind: str = "sequence", **options: Any) -> Tensor:
    perturb = bound(model, name, tokens=kind == "token")
    found: Tensor = model(
        **INPUTS, output_members=True, perturb=perturb, replicate_at=depth_of(name), **options
    ).member_logits
    return found


@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("name", ACTING)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_at_once_is_one_after_the_other(family: str, name: str, kind: str) -> None:
    model = model_of(family, kind)
    mask = REAL if kind == "token" else None
    found, gradients = [], []
    for replay in (False, True):
        logits = logits_of(model, name, kind, replay=replay)
        model.zero_grad()
        consistency(logits, SINGLE, mask).backward()
        found.append(logits.detach() * (REAL[..., None] if kind == "token" else 1))
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-11)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-10)
    assert len(gradients[0]) > 5


@pytest.mark.parametrize("name", ACTING)
def test_the_perturbation_is_there_and_gone_in_evaluation(name: str) -> None:
    model = model_of("bert")
    with torch.no_grad():
        plain = model(**INPUTS, output_members=True).member_logits
        assert float((logits_of(model, name) - plain).abs().min(-1).values.max()) > 1e-6
        torch.testing.assert_close(model.eval()(**INPUTS, output_members=True).member_logits, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_blanked_embeddings_are_those_of_other_words(family: str) -> None:
    """Each member reads the text with its own words replaced."""
    model = model_of(family)
    perturb = bound(model, "word_dropout", {"rate": 0.5})
    found = model(**INPUTS, output_members=True, perturb=perturb, replicate_at=0).member_logits
    droppable = droppable_words(IDS, REAL, special=[0, 2, 3])
    for j in range(M):
        draw = torch.Generator().manual_seed(j)
        dropped = (torch.rand(IDS.shape, generator=draw, dtype=torch.float64) < 0.5) & droppable
        assert bool(dropped.any())
        ids = torch.where(dropped, 4, IDS)
        alone = model(**{**INPUTS, "input_ids": ids}, output_members=True).member_logits[j]
        torch.testing.assert_close(found[j], alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("at", ["hidden", "embeddings"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_adversary_beats_chance_in_real_models(family: str, at: str, dropout: float) -> None:
    """KL(clean ‖ perturbed) of the direction found, against random ones of its length, under one dropout mask."""
    model = model_of(family, dropout=dropout)
    perturb = bound(model, "adversarial", {"strength": 0.05, "at": at})
    rises: dict[str, Tensor] = {}

    def spy(hidden: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        def under_one_mask(states: Tensor) -> Tensor:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return forward(states)

        moved = perturb(hidden, forward)
        clean, real = under_one_mask(hidden), REAL[..., None]
        noise = (moved - hidden).detach()
        length = (noise * real).square().sum((-1, -2), keepdim=True).sqrt()
        rises["found"] = divergence(clean, under_one_mask(moved), SINGLE)
        draw = torch.Generator().manual_seed(9)
        others = [torch.randn(hidden.shape, generator=draw, dtype=hidden.dtype) * real for _ in range(10)]
        rises["chance"] = torch.stack(
            [divergence(clean, under_one_mask(hidden + project(1e9 * n, length)), SINGLE) for n in others]
        )
        return moved

    model(**INPUTS, perturb=spy, replicate_at=0 if at == "embeddings" else 1)
    assert bool((rises["found"] > rises["chance"].mean(0)).all())
    assert float(rises["found"].mean() / rises["chance"].mean()) > 2


def test_the_search_trains_nothing() -> None:
    model = model_of("bert")
    model.zero_grad()
    logits_of(model, "adversarial")
    assert all(parameter.grad is None for parameter in model.parameters())
