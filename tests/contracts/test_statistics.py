"""Every estimator against its definition, for every family and head, and what must not change its result."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from plait.encoders.topology import Place, topology
from plait.statistics.estimate import estimate_statistics
from plait.statistics.estimator import ESTIMATORS
from plait.statistics.importance import Statistics
from tests.batches import Batch, batch, examples, together
from tests.models import FAMILIES, HEADS, tiny
from tests.reference import statistics as reference

TASKS = tuple(head for head in HEADS if head != "body")
FISHERS = tuple(name for name in ESTIMATORS if name != "gram")


@cache
def model(family: str, head: str = "sequence") -> PreTrainedModel:
    return tiny(family, head).double()


@cache
def data(family: str, head: str = "sequence") -> Batch:
    return batch(family, head)


@cache
def true_diagonal(family: str, head: str, labels: str) -> dict[str, Tensor]:
    return reference.diagonal(model(family, head), head, examples(data(family, head)), labels)


def estimate(family: str, head: str, estimator: str, **options: object) -> Statistics:
    return estimate_statistics(
        model(family, head), [data(family, head)], estimator=estimator, passes=1000, **options
    )


def pad(family: str) -> int:
    return model(family).config.pad_token_id


def relative(family: str, head: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    whole = model(family, head)
    prefix = "" if head == "body" else f"{whole.base_model_prefix}."
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def accuracy(family: str) -> float:
    """ModernBERT rounds its rotations and attention to float32, whatever its weights are."""
    return 1e-6 if family == "modernbert" else 1e-9


def agree(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    assert set(found) == set(wanted)
    scale = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        distance = float((found[name] - value).abs().max())
        assert distance <= tolerance * float(value.abs().max()) + 1e-13 * scale, name


# The definition, family by family and head by head.


@pytest.mark.parametrize("labels", ["given", "exact"])
@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_diagonal_is_that_of_plain_autograd(family, head, labels):
    found = estimate(family, head, "diagonal", labels=labels)
    agree(found.tensors, relative(family, head, true_diagonal(family, head, labels)), accuracy(family))


@pytest.mark.parametrize("labels", ["given", "exact"])
@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_mask_nodes_are_derivatives_by_masks(family, head, labels):
    found = estimate(family, head, "mask_nodes", labels=labels)
    agree(
        {"heads": found.heads, "neurons": found.neurons},
        reference.mask_nodes(model(family, head), family, head, examples(data(family, head)), labels),
        accuracy(family),
    )


def blocks(place: Place | None) -> tuple[tuple[int, int, int] | None, int]:
    axis = place and (place.rows or place.columns)
    if not axis:
        return None, 0
    return (axis.blocks, axis.count, axis.size), 0 if place.rows else 1


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_block_traces_are_means_of_the_diagonal(family, head):
    found = estimate(family, head, "block_traces")
    table = topology(model(family, head).config)
    prefix = f"{model(family, head).base_model_prefix}."
    wanted = {}
    for name, value in true_diagonal(family, head, "given").items():
        place = table.place(name.removeprefix(prefix)) if name.startswith(prefix) else None
        wanted[name.removeprefix(prefix)] = reference.block_means(value, *blocks(place))
    spread = {name: value.expand_as(wanted[name]) for name, value in found.tensors.items()}
    agree(spread, wanted, accuracy(family))
    assert (
        sum(value.numel() for value in found.tensors.values()) < sum(v.numel() for v in wanted.values()) / 4
    )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gram_matrices_count_real_tokens_only(family, head):
    found = estimate(family, head, "gram")
    agree(
        found.tensors,
        relative(family, head, reference.gram(model(family, head), examples(data(family, head)))),
        accuracy(family),
    )


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_per_batch_squares_the_gradient_of_the_mean_loss(family, head):
    some = examples(data(family, head))
    pairs = [together(pair, pad=pad(family)) for pair in (some[:2], some[2:])]
    found = estimate_statistics(model(family, head), pairs, estimator="diagonal", per="batch")
    wanted = relative(family, head, reference.batch_mean_squares(model(family, head), pairs))
    agree(found.tensors, wanted, accuracy(family))


# What must not matter.


def alone(family: str, some: list[Batch]) -> list[Batch]:
    return some


def wider(family: str, some: list[Batch]) -> list[Batch]:
    return [together(some, pad=pad(family), extra=5)]


def uneven(family: str, some: list[Batch]) -> list[Batch]:
    return [together(some[:3], pad=pad(family), extra=1), together(some[3:], pad=pad(family))]


def reversed_order(family: str, some: list[Batch]) -> list[Batch]:
    return [together(some[::-1], pad=pad(family))]


def without_mask(family: str, some: list[Batch]) -> list[Batch]:
    return [{name: value for name, value in one.items() if name != "attention_mask"} for one in some]


CHANGES = (alone, wider, uneven, reversed_order, without_mask)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["sequence", "qa"])
def test_batching_padding_and_order_do_not_matter(family, head, change, estimator):
    some = examples(data(family, head))
    some.append(some[0])  # twice the same text: both draws must be found again
    first = [together(some, pad=pad(family))]
    results = [
        estimate_statistics(
            model(family, head), batches, estimator=estimator, labels="sampled", seed=3
        ).tensors
        for batches in (first, change(family, some))
    ]
    agree(*results, accuracy(family))


@pytest.mark.parametrize("estimator", FISHERS)
@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("change", CHANGES)
def test_random_signs_follow_the_example(head, change, estimator):
    some = examples(data("bert", head))
    results = [
        estimate_statistics(
            model("bert", head), batches, estimator=estimator, labels="exact", passes=1, seed=5
        ).tensors
        for batches in ([together(some, pad=0)], change("bert", some))
    ]
    agree(*results)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_threads_do_not_matter(estimator):
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(estimate("bert", "sequence", estimator).tensors)
    torch.set_num_threads(before)
    agree(*results)


@pytest.mark.parametrize("per", ["example", "batch"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_left_as_it_was_found(family, estimator, per):
    subject, given = tiny(family), data(family)
    weights = {name: value.clone() for name, value in subject.state_dict().items()}
    inputs = {name: value.clone() for name, value in given.items()}
    subject.train()
    subject.classifier.eval()
    frozen = next(subject.parameters()).requires_grad_(False)
    modes = [module.training for module in subject.modules()]
    random = torch.random.get_rng_state()
    estimate_statistics(subject, [given], estimator=estimator, per=per)
    assert [module.training for module in subject.modules()] == modes
    assert all(parameter.requires_grad == (parameter is not frozen) for parameter in subject.parameters())
    assert all(parameter.grad is None for parameter in subject.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.modules())
    assert set(given) == set(inputs)
    assert all(torch.equal(given[name], value) for name, value in inputs.items())
    assert all(torch.equal(subject.state_dict()[name], value) for name, value in weights.items())
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_statistics_come_back_from_disk(estimator, tmp_path):
    from plait.statistics.importance import load_statistics

    found = estimate_statistics(
        model("bert"), [data("bert")], estimator=estimator, provenance={"data": "abc"}, seed=4
    )
    again = load_statistics(found.save(tmp_path / "deep" / "x.safetensors"))
    assert again.estimator == estimator
    assert again.provenance == found.provenance
    assert again.provenance["data"] == "abc"
    assert again.provenance["examples"] == 4
    assert set(again.tensors) == set(found.tensors)
    assert all(torch.equal(again.tensors[name], value) for name, value in found.tensors.items())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_says_what_it_computes(estimator):
    assert ESTIMATORS[estimator].summary.startswith("Returns ")
