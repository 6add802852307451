"""The table of language models: every parameter has a place, axes fit shapes, grouped heads share rows."""

from __future__ import annotations

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from plait.encoders.decoder_families import DECODERS, MIXTURES
from plait.encoders.families import Part
from plait.encoders.topology import CROSS, Axis, Place, topology, topology_of
from tests.languages import NODED, SIZES, TABLED, tiny_language


def test_every_family_of_the_table_has_a_tiny_model():
    assert {SIZES[name][0] for name in TABLED} == set(DECODERS)
    assert {SIZES[name][0] for name in TABLED} - {SIZES[name][0] for name in NODED} == MIXTURES


@pytest.mark.parametrize("name", TABLED)
def test_every_parameter_has_a_place_that_fits_its_shape(name):
    model = tiny_language(name)
    body, table = model.base_model, topology(model.config)
    layers = set()
    for inner, parameter in body.named_parameters():
        place = table.place(inner)
        layers |= {place.layer} - {None}
        if place.rows:
            assert place.rows.length == parameter.shape[0], inner
        if place.columns:
            assert place.columns.length == parameter.shape[1], inner
        assert place.transposed == isinstance(body.get_submodule(inner.rpartition(".")[0]), Conv1D) or inner.endswith(
            "bias"
        )
    assert layers == set(range(table.layers))


@pytest.mark.parametrize("name", NODED)
def test_node_modules_take_all_heads_and_neurons(name):
    model = tiny_language(name)
    body, table = model.base_model, topology(model.config)
    paths = table.attention_outputs()
    assert len(paths) == table.attentions
    for path in paths:
        weight = body.get_submodule(path).weight
        assert weight.shape[0 if table.family.transposed else 1] == table.heads * table.head_dim
        assert table.place(f"{path}.weight").inputs == Axis("head", table.heads, table.head_dim)
    for layer in range(table.layers):
        place = table.place(f"{table.ffn_output(layer)}.weight")
        assert place.inputs == Axis("neuron", table.neurons)
        assert table.row(place) == layer


def test_grouped_heads_share_key_and_value_rows():
    table = topology(tiny_language("llama").config)
    assert table.place("layers.1.self_attn.k_proj.weight") == Place(1, Part.KEY, Axis("group", 2, 4))
    assert table.place("layers.1.self_attn.v_proj.weight").rows == Axis("group", 2, 4)
    assert table.place("layers.1.self_attn.q_proj.weight").rows == Axis("head", 4, 4)
    ungrouped = topology(tiny_language("llama-ungrouped").config)
    assert ungrouped.place("layers.0.self_attn.k_proj.bias").rows == Axis("head", 4, 4)


def test_a_neuron_spans_gate_up_and_down():
    table = topology(tiny_language("qwen2").config)
    neuron = Axis("neuron", 24)
    assert table.place("layers.0.mlp.gate_proj.weight").outputs == neuron
    assert table.place("layers.0.mlp.up_proj.weight").outputs == neuron
    assert table.place("layers.0.mlp.down_proj.weight").inputs == neuron


def test_conv1d_lies_the_other_way_round():
    table = topology(tiny_language("gpt2").config)
    fused = table.place("h.0.attn.c_attn.weight")
    assert (fused.rows, fused.columns) == (None, Axis("head", 4, 4, blocks=3))
    assert fused.outputs == fused.columns
    assert table.place("h.0.attn.c_attn.bias").rows == Axis("head", 4, 4, blocks=3)
    assert table.place("h.0.mlp.c_proj.weight").rows == Axis("neuron", 24)
    assert table.place("h.0.ln_1.weight").transposed is False


def test_a_second_stack_comes_behind_the_first_and_its_crossing_heads_last():
    table = topology(tiny_language("t5").config)
    assert (table.layers, table.lower, table.attentions) == (5, 2, 8)
    own, crossing = (
        table.place(f"decoder.block.1.layer.{place}.{kind}.q.weight")
        for place, kind in ((0, "SelfAttention"), (1, "EncDecAttention"))
    )
    assert (own.layer, crossing.layer) == (3, 3)
    assert crossing.part in CROSS
    assert (table.row(own), table.row(crossing)) == (3, 6)
    assert table.ffn_output(1) == "encoder.block.1.layer.1.DenseReluDense.wo"
    assert table.ffn_output(2) == "decoder.block.0.layer.2.DenseReluDense.wo"


def test_experts_are_the_rows_of_fused_weights():
    table = topology(tiny_language("qwen2_moe").config)
    assert table.mixture
    assert table.place("layers.0.mlp.experts.down_proj").rows == Axis("expert", 3)
    assert table.place("layers.0.mlp.shared_expert.up_proj.weight").rows is None


def test_scores_of_a_group_are_spread_over_its_rows():
    axis = Axis("group", 2, 3)
    torch.testing.assert_close(axis.spread(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 1, 1, 2, 2, 2]))


def test_a_family_without_a_table_has_no_topology():
    assert topology_of(tiny_language("opt").config) is None
