"""What an ensemble will weigh and cost by method, by hand for BERT-base; choices of a recipe that were left open."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BertConfig

from plait.encoders.heads import Head
from plait.ensembles.choices import choice_of, noise_of
from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.plan import EnsemblePlan, depth_of
from plait.errors import RecipeError
from plait.recipe import EnsembleRecipe

BASE, HEAD, SEPARATE = 109_482_240, 592_130, 880_594_960
FACTORS = 12 * (4 * (768 + 768) + 2 * (768 + 3072))
"""Of one member; the pooler, which tanh heads do not look at, has none."""
POOLER = 768 * 768 + 768
LAYERS = 12 * (4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768)
UPHILL = {"name": "adversarial", "at": "embeddings"}


class Source:
    origin = "bert-base"
    architecture = "BertModel"


def job(members: int = 8, **options: Any) -> EnsemblePlan:
    recipe = EnsembleRecipe.model_validate({"base": "b", "output": "o", "head": "tanh", **options})
    choice, noise = choice_of(recipe), noise_of(recipe)
    one = choice.alone
    config = EnsembleConfig(
        encoder=BertConfig(), members=1 if one else members, shared_layers=recipe.shared_layers, head="tanh",
        id2label={0: "no", 1: "yes"},
    )  # fmt: skip
    head = Head("sequence_classification", ("no", "yes"), "single_label_classification")
    count = 1 if choice.lone and not choice.passes else members
    sources: Any = (Source(),)
    return EnsemblePlan(recipe, sources, head, count, config, choice, noise, depth_of(noise, choice, config))


@pytest.mark.parametrize(
    ("options", "saved", "separate", "step", "prediction"),
    [
        ({}, BASE + 8 * HEAD, SEPARATE, 24, 1),
        ({"perturbation": "gaussian"}, BASE + 8 * HEAD, SEPARATE, 3, 1),
        ({"replicate_at": 6}, BASE + 8 * HEAD, SEPARATE, 3 * 4.5, 1),
        ({"replicate_at": 6, "replay": True}, BASE + 8 * HEAD, SEPARATE, 1.5 + 16, 1),
        ({"method": "shared"}, BASE + 8 * HEAD, SEPARATE, 24, 1),
        ({"method": "one", "perturbation": "none"}, BASE + 8 * HEAD, SEPARATE, 3, 1),
        ({"method": "single"}, BASE + HEAD, BASE + HEAD, 3, 1),
        ({"method": "mc_dropout"}, BASE + HEAD, SEPARATE, 3, 8),
        ({"method": "separate"}, SEPARATE, SEPARATE, 24, 8),
        ({"method": "codistillation"}, SEPARATE, SEPARATE, 24, 8),
        ({"method": "batchensemble"}, BASE - POOLER + 7 * LAYERS + 8 * HEAD, SEPARATE, 24, 8),
        ({"method": "soup"}, BASE + HEAD, SEPARATE, 24, 1),
        ({"method": "greedy_soup"}, BASE + HEAD, SEPARATE, 24, 1),
        ({"method": "swa"}, BASE + HEAD, BASE + HEAD, 3, 1),
        ({"method": {"name": "deni", "share": 0.25}}, BASE + HEAD, SEPARATE, 3 * (0.75 + 8 * 0.25), 1),
        ({"method": "separate", "perturbation": "gaussian"}, SEPARATE, SEPARATE, 24, 8),
        ({"method": "codistillation", "perturbation": "none"}, SEPARATE, SEPARATE, 24, 8),
        ({"method": "separate", "perturbation": "adversarial"}, SEPARATE, SEPARATE, 24, 8),
        ({"method": "separate", "perturbation": UPHILL}, SEPARATE, SEPARATE, 48, 8),
        ({"method": "single", "perturbation": "gaussian"}, BASE + HEAD, BASE + HEAD, 3, 1),
        ({"perturbation": UPHILL}, BASE + 8 * HEAD, SEPARATE, 48, 1),
        ({"perturbation": {"name": "adversarial", "at": "embeddings", "steps": 2}}, BASE + 8 * HEAD, SEPARATE, 64, 1),
    ],
)  # fmt: skip
def test_size_and_cost(
    options: dict[str, Any], saved: int, separate: int, step: float, prediction: float
) -> None:
    found = job(**options)
    assert found.sizes()["saved"] == saved
    assert found.sizes()["separate"] == separate
    assert found.costs() == {"training_step": step, "training": 3 * step, "prediction": prediction}
    told = found.describe()
    assert told["megabytes"] == pytest.approx(saved * 4 / 1e6, abs=0.01)
    assert (told["shared_layers"] is None) is found.alone
    again = found.resolved()  # what is written beside a result can be run again
    assert choice_of(again) == found.choice
    assert depth_of(noise_of(again), choice_of(again), found.config) == found.depth


def test_factors_are_written_as_layers_of_members_own() -> None:
    found = job(method="batchensemble")
    assert found.sizes()["factors"] == BASE + 8 * (HEAD + FACTORS)
    assert found.sizes()["live"] == found.sizes()["saved"]
    assert found.describe()["shared_layers"] == 0


def test_low_rank_updates_and_singular_values_are_counted() -> None:
    rank = 12 * 4 * (768 * 4 + 4 * 768)
    assert job(method={"name": "lora", "rank": 4}).sizes()["factors"] == BASE + 8 * (HEAD + rank)
    values = 12 * 6 * 768
    biases = 12 * (4 * 768 + 3072 + 768)
    wanted = BASE + 8 * (HEAD + values) + 7 * biases
    assert job(method="singular").sizes()["factors"] == wanted


def test_private_tops() -> None:
    found = job(shared_layers=10)
    assert found.sizes()["live"] / 1e6 == pytest.approx(212.9, abs=0.05)
    assert found.costs()["prediction"] == pytest.approx(10 / 12 + 8 * 2 / 12, abs=1e-3)


def test_what_was_left_open_is_spelled_out() -> None:
    found = job().resolved()
    assert found.perturbation is not None
    assert found.consistency is not None
    assert (found.members, found.perturbation.name, found.consistency.name, found.alpha) == (
        8, "dropout", "ensemble", 1.0,
    )  # fmt: skip
    assert found.replicate_at == 0
    again = EnsembleRecipe.model_validate(found.model_dump(mode="json", exclude_none=True))
    assert again == found
    lone = job(method="single").resolved()
    assert (lone.consistency, lone.alpha, lone.replicate_at) == (None, None, None)
    assert job(method="separate").resolved().shared_layers == "all"


def test_strength_is_a_strength_or_a_rate() -> None:
    def of(**options: Any) -> Any:
        return noise_of(EnsembleRecipe.model_validate({"base": "b", "output": "o", **options})).options

    assert of(perturbation="gaussian", strength=0.3) == {"strength": 0.3}
    assert of(perturbation="word-dropout", strength=0.3) == {"rate": 0.3}
    assert of(strength=0.2) == {"rate": 0.2}
    with pytest.raises(RecipeError, match="goes without a perturbation"):
        of(perturbation="none", strength=0.2)
