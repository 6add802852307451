"""Estimation: what has no answer, where hooks would be wrong, half precision, and batches of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import plait
from plait.errors import DataError, MergeError, RecipeError
from plait.statistics.estimate import estimate_statistics
from plait.statistics.per_example import ExampleGradients
from tests.batches import batch, examples
from tests.models import FAMILIES, save, texts, tiny
from tests.reference import statistics as reference

ONE_BY_ONE = {"mpnet", "deberta-v2"}


@pytest.fixture
def decisions(monkeypatch):
    """Whether the hooks were found right, each time it was asked."""
    found = []
    asked = ExampleGradients._hooks_are_right

    def ask(self, batch):
        found.append(asked(self, batch))
        return found[-1]

    monkeypatch.setattr(ExampleGradients, "_hooks_are_right", ask)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_only_families_with_relative_tables_go_one_by_one(family, decisions):
    estimate_statistics(tiny(family), [batch(family, "sequence")], estimator="diagonal")
    assert decisions == [family not in ONE_BY_ONE]


@pytest.mark.parametrize("family", sorted(ONE_BY_ONE))
@pytest.mark.parametrize("tokens", [2, 3, 5])
def test_as_many_examples_as_tokens_fool_nobody(family, tokens, decisions):
    # A table looked up as [tokens, tokens] has the shape of a batch when there are as many examples as tokens.
    ids = torch.randint(5, 30, (tokens, tokens), generator=torch.Generator().manual_seed(0))
    data = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.zeros(tokens, dtype=int),
    }
    model = tiny(family).double()
    found = estimate_statistics(model, [data], estimator="diagonal")
    wanted = reference.diagonal(model, "sequence", examples(data))
    assert decisions == [False]
    for name, value in wanted.items():
        torch.testing.assert_close(found.of(name), value, rtol=1e-9, atol=1e-15)


class Surprise(nn.Linear):
    """A linear layer that is not one."""

    def forward(self, input):
        return super().forward(input) * self.bias.sin()


class Gate(nn.Module):
    """A parameter of a kind that no table knows."""

    def __init__(self, size):
        super().__init__()
        self.gate = nn.Parameter(torch.linspace(0.5, 1.5, size, dtype=torch.float64))

    def forward(self, x):
        return x * self.gate


def shared(model):
    first, second = model.bert.encoder.layer
    second.intermediate.dense.weight = first.intermediate.dense.weight


def tied_across_kinds(model):
    layer = model.bert.encoder.layer[0].attention.self
    layer.query.weight = nn.Parameter(model.bert.embeddings.word_embeddings.weight[:16].detach().clone())
    model.bert.embeddings.token_type_embeddings = nn.Embedding(16, 16).double()
    model.bert.embeddings.token_type_embeddings.weight = layer.query.weight


def subclassed(model):
    layer = model.bert.encoder.layer[0].intermediate
    new = Surprise(16, 24).double()
    new.load_state_dict(layer.dense.state_dict())
    layer.dense = new


def gated(model):
    layer = model.bert.encoder.layer[0].intermediate
    layer.dense = nn.Sequential(layer.dense, Gate(24))


def rms(model):
    layer = model.bert.encoder.layer[0].output
    layer.LayerNorm = nn.RMSNorm(16, eps=1e-6).double()
    nn.init.normal_(layer.LayerNorm.weight)


def without_affine(model):
    model.bert.encoder.layer[0].output.LayerNorm = nn.LayerNorm(16, elementwise_affine=False)


def without_bias(model):
    model.bert.encoder.layer[0].output.LayerNorm = nn.LayerNorm(16, bias=False).double()
    model.bert.encoder.layer[0].output.dense.bias = None


def looked_up_by_frequency(model):
    model.bert.embeddings.word_embeddings.scale_grad_by_freq = True


@pytest.mark.parametrize(
    ("change", "by_hooks"),
    [
        (shared, True), (rms, True), (without_affine, True), (without_bias, True),
        (tied_across_kinds, True), (subclassed, False), (gated, False), (looked_up_by_frequency, False),
    ],
)  # fmt: skip
def test_unusual_layers_are_exact_too(change, by_hooks, decisions):
    model, data = tiny("bert").double(), batch("bert", "sequence")
    change(model)
    found = estimate_statistics(model, [data], estimator="diagonal")
    assert decisions == [by_hooks]
    for name, value in reference.diagonal(model, "sequence", examples(data)).items():
        torch.testing.assert_close(found.of(name), value, rtol=1e-9, atol=1e-15)


def test_the_diagonal_in_float32_is_close():
    data = batch("bert", "sequence", n=6)
    found = estimate_statistics(tiny("bert"), [data], estimator="diagonal")
    wanted = reference.diagonal(tiny("bert").double(), "sequence", examples(data))
    for name, value in wanted.items():
        torch.testing.assert_close(found.of(name).double(), value, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("estimator", ["diagonal", "mask_nodes", "block_traces", "gram"])
def test_half_precision_models_give_float32_statistics(estimator):
    data = batch("bert", "sequence", n=6)
    found = estimate_statistics(tiny("bert").bfloat16(), [data], estimator=estimator)
    wanted = estimate_statistics(tiny("bert"), [data], estimator=estimator)
    for name, value in wanted.tensors.items():
        assert found.tensors[name].dtype == torch.float32
        torch.testing.assert_close(found.tensors[name], value, rtol=1, atol=0.2 * float(value.max()) + 1e-4)


def test_tokens_that_are_not_pooled_are_left_out_of_the_last_layer_only():
    """The shortcut for zero gradients changes no number, whichever token is pooled."""
    for pooling in ("cls", "mean"):
        model = tiny("modernbert", classifier_pooling=pooling).double()
        data = batch("modernbert", "sequence")
        found = estimate_statistics(model, [data], estimator="diagonal")
        wanted = reference.diagonal(model, "sequence", examples(data))
        for name, value in wanted.items():
            torch.testing.assert_close(found.of(name), value, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"estimator": "mask_node"},
            RecipeError,
            r"unknown importance 'mask_node'.*did you mean 'mask_nodes'",
        ),
        ({"labels": "gold"}, RecipeError, r"unknown labels 'gold'.*known: exact, given, sampled"),
        ({"per": "token"}, RecipeError, r"unknown per 'token'.*known: batch, example"),
        ({"per": "batch", "labels": "exact"}, RecipeError, "per: batch reproduces .* with given labels only"),
    ],
)
def test_unknown_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        estimate_statistics(tiny("bert"), [batch("bert", "sequence")], **options)


def test_nothing_to_estimate_from_is_refused():
    with pytest.raises(DataError, match="no examples"):
        estimate_statistics(tiny("bert"), [])
    with pytest.raises(DataError, match="a batch holds text; expected input_ids"):
        estimate_statistics(tiny("bert"), [{"text": torch.zeros(1)}])


@pytest.mark.parametrize("per", ["example", "batch"])
def test_weights_that_are_not_numbers_are_refused(per):
    model = tiny("bert")
    model.bert.encoder.layer[0].output.dense.weight.data[0, 0] = torch.nan
    with pytest.raises(DataError, match="look for NaN or Inf"):
        estimate_statistics(model, [batch("bert", "sequence")], per=per)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("estimator", ["diagonal", "mask_nodes", "block_traces"])
def test_a_body_has_no_likelihood(estimator):
    with pytest.raises(DataError, match="BertModel has no task head"):
        estimate_statistics(tiny("bert", "body"), [batch("bert", "body")], estimator=estimator)


def test_chunks_of_tokens_are_told_apart():
    chunked = tiny("bert", chunk_size_feed_forward=1)
    data = {
        name: value[:, :4] if value.dim() == 2 else value for name, value in batch("bert", "sequence").items()
    }
    with pytest.raises(MergeError, match="1 of 4 tokens at a time; set chunk_size_feed_forward to 0"):
        estimate_statistics(chunked, [data], estimator="gram")
    for estimator in ("diagonal", "mask_nodes"):
        found = estimate_statistics(chunked, [data], estimator=estimator)
        wanted = estimate_statistics(tiny("bert"), [data], estimator=estimator)
        for name, value in wanted.tensors.items():
            torch.testing.assert_close(found.tensors[name], value, rtol=1e-4, atol=1e-9)


def test_seeds_decide_what_is_sampled():
    data, model = batch("bert", "sequence"), tiny("bert")

    def heads(seed):
        return estimate_statistics(model, [data], labels="sampled", seed=seed).heads

    assert torch.equal(heads(1), heads(1))
    assert not all(torch.equal(heads(1), heads(seed)) for seed in range(2, 8))


def test_half_precision_sources_are_estimated_in_full(tmp_path: Path) -> None:
    model = tiny("bert", "sequence")
    rows = {"text": texts(6), "label": [0, 1, 2, 0, 1, 2]}
    half = save(model.half(), tmp_path / "half")
    whole = save(model.float(), tmp_path / "whole")
    a = plait.estimate(str(half), rows, importance="diagonal")
    b = plait.estimate(str(whole), rows, importance="diagonal")
    for name, tensor in b.tensors.items():
        torch.testing.assert_close(a.tensors[name], tensor, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "albert"])
def test_gram_does_not_depend_on_a_last_batch_of_one(family: str) -> None:
    from tests.models import tiny_tokenizer

    model, tokenizer = tiny(family, "sequence"), tiny_tokenizer(family)
    rows = {"text": texts(5), "label": [0, 1, 2, 0, 1]}
    a, b = (
        plait.estimate(model, rows, importance="gram", tokenizer=tokenizer, batch_size=size)
        for size in (5, 4)
    )
    for name, tensor in a.tensors.items():
        torch.testing.assert_close(b.tensors[name], tensor, rtol=1e-4, atol=1e-6)
