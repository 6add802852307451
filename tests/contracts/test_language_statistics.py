"""Every estimator on every family of language models against its definition, and what must not change its result."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from plait.encoders.topology import topology
from plait.errors import DataError, MergeError
from plait.statistics.estimate import estimate_statistics
from plait.statistics.estimator import ESTIMATORS
from plait.statistics.importance import Statistics
from tests.languages import MIXTURES, NODED, SIZES, TABLED, is_seq2seq, padded, tiny_language, tokens
from tests.reference import language as reference
from tests.reference.statistics import block_means


@cache
def model(name: str) -> PreTrainedModel:
    return tiny_language(name).double()


@cache
def true_diagonal(name: str) -> dict[str, Tensor]:
    return reference.diagonal(model(name), tokens(name))


def estimate(name: str, estimator: str, **options: Any) -> Statistics:
    return estimate_statistics(model(name), [padded(tokens(name))], estimator=estimator, **options)


def relative(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    whole = model(name)
    start = "" if whole.base_model is whole else f"{whole.base_model_prefix}."
    return {key.removeprefix(start): value for key, value in tensors.items()}


def agree(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """Norms and rotations of language models round to float32, whatever their weights are."""
    assert set(found) == set(wanted)
    scale = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        distance = float((found[name] - value).abs().max())
        assert distance <= tolerance * float(value.abs().max()) + 1e-12 * scale, name


@pytest.mark.parametrize("name", SIZES)
def test_the_diagonal_is_that_of_plain_autograd(name):
    agree(estimate(name, "diagonal").tensors, relative(name, true_diagonal(name)))


@pytest.mark.parametrize("name", NODED)
def test_mask_nodes_are_derivatives_by_masks(name):
    agree(estimate(name, "mask_nodes").tensors, reference.mask_nodes(model(name), tokens(name)))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_exact_labels_are_the_expectation_over_each_next_token(name):
    some = tokens(name, lengths=(3,))
    wanted = reference.mask_nodes(model(name), some, exact=True)
    found = estimate_statistics(model(name), some, estimator="mask_nodes", labels="exact", passes=1000)
    agree(found.tensors, wanted)


def test_sampled_labels_approach_the_expectation():
    some = tokens("llama", lengths=(3,))
    wanted = reference.mask_nodes(model("llama"), some, exact=True)["heads"]
    batch = padded(some * 200)
    found = estimate_statistics(model("llama"), [batch], estimator="mask_nodes", labels="sampled")
    torch.testing.assert_close(found.heads, wanted, rtol=0.5, atol=0.1 * float(wanted.max()))


def test_a_group_is_weighed_by_a_mask_on_what_its_heads_share():
    found = estimate("llama", "mask_nodes")
    table = topology(model("llama").config)
    for layer in range(2):
        name = f"layers.{layer}.self_attn.k_proj.weight"
        assert table.place(name).rows.node == "group"
        weights = found.of(name)
        assert weights.shape == (8, 1)
        torch.testing.assert_close(weights[::4, 0], found.tensors["groups"][layer])
        heads = found.of(f"layers.{layer}.self_attn.q_proj.weight")
        torch.testing.assert_close(heads[::4, 0], found.heads[layer])


@pytest.mark.parametrize("name", TABLED)
def test_block_traces_are_means_of_the_diagonal(name):
    found, table, wanted = estimate(name, "block_traces"), topology(model(name).config), {}
    for key, value in true_diagonal(name).items():
        [inner] = relative(name, {key: value})
        place = None if inner == "lm_head.weight" else table.place(inner)
        axis = place and (place.rows or place.columns)
        blocks = (axis.blocks, axis.count, axis.size) if axis else None
        wanted[inner] = block_means(value, blocks, 0 if place is None or place.rows else 1)
    agree({key: value.expand_as(wanted[key]) for key, value in found.tensors.items()}, wanted)


@pytest.mark.parametrize("name", SIZES)
def test_gram_matrices_count_real_tokens_only(name):
    agree(estimate(name, "gram").tensors, relative(name, reference.gram(model(name), tokens(name))))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", ["llama-tied", "gemma3_text", "gpt2", "t5", "qwen2_moe"])
def test_batching_padding_and_order_do_not_matter(name, estimator):
    if name in MIXTURES and estimator == "mask_nodes":
        return
    some = tokens(name)
    ways = [[padded(some)], some, [padded(some, extra=3)], [padded(some[1:][::-1]), some[0]]]
    first, *others = (
        estimate_statistics(model(name), way, estimator=estimator, labels="sampled").tensors for way in ways
    )
    for other in others:
        agree(other, first)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "gemma2", "qwen3"])
def test_families_are_understood_layer_by_layer(name, monkeypatch):
    """None of them goes through plain autograd one example at a time, which is exact as well, and slower."""
    from plait.statistics import per_example

    def refuse(*_: Any) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(per_example.ExampleGradients, "_plainly", refuse)
    assert estimate(name, "diagonal").tensors


def test_a_large_vocabulary_has_the_same_cotangents(monkeypatch):
    from plait.statistics import likelihood

    before = {labels: estimate("llama", "mask_nodes", labels=labels, passes=1) for labels in ("given", "exact")}
    monkeypatch.setattr(likelihood, "VOCABULARY", 2)
    for labels, found in before.items():
        again = estimate("llama", "mask_nodes", labels=labels, passes=1)
        agree(again.tensors, found.tensors)


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_have_no_mask_nodes_and_say_what_to_use(name):
    with pytest.raises(MergeError, match=r"use --importance block_traces .* or diagonal"):
        estimate(name, "mask_nodes")


def test_experts_are_weighed_one_by_one():
    found = estimate("mixtral", "block_traces").tensors["layers.0.mlp.experts.gate_up_proj"]
    assert found.shape == (3, 1, 1)
    assert len(found.flatten().unique()) == 3


def test_targets_are_needed_where_they_have_the_likelihood():
    batch = {name: value for name, value in padded(tokens("t5")).items() if name != "labels"}
    with pytest.raises(DataError, match="give labels, token by token"):
        estimate_statistics(model("t5"), [batch])


def test_texts_need_no_labels_where_they_have_the_likelihood():
    whole = padded(tokens("llama"))
    bare = {name: value for name, value in whole.items() if name != "labels"}
    first, second = (
        estimate_statistics(model("llama"), [batch], labels="sampled").tensors for batch in (whole, bare)
    )
    agree(first, second)
    assert not is_seq2seq("llama")
