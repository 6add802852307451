"""The table of families: every body parameter of every family has a place, and the axes fit its shape."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, DistilBertConfig, OPTConfig

from plait.encoders.families import FAMILIES as TABLE
from plait.encoders.families import Part
from plait.encoders.topology import Axis, Place, topology
from plait.errors import MergeError
from tests.models import FAMILIES, tiny, tiny_config, tiny_tokenizer

VARIANTS = {
    "electra-unprojected": ("electra", {"embedding_size": 16}),
    "albert-grouped": ("albert", {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}),
    "deberta-plain": (
        "deberta-v2",
        {"relative_attention": False, "conv_kernel_size": 0, "norm_rel_ebd": "none"},
    ),
    "deberta-absolute": (
        "deberta-v2",
        {"position_biased_input": True, "type_vocab_size": 2, "embedding_size": 8},
    ),
    "modernbert-biased": ("modernbert", {"attention_bias": True, "mlp_bias": True, "norm_bias": True}),
    "distilbert-sinusoidal": ("distilbert", {"sinusoidal_pos_embds": True}),
}
CASES = {family: (family, {}) for family in FAMILIES} | VARIANTS


def test_the_table_has_every_family():
    assert set(TABLE) == set(FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_every_body_parameter_has_a_place_that_fits_its_shape(case):
    family, changes = CASES[case]
    model = tiny(family, "body", **changes)
    table = topology(model.config)
    layers = set()
    for name, parameter in model.named_parameters():
        place = table.place(name)
        layers |= {place.layer} - {None}
        if place.rows:
            assert place.rows.length == parameter.shape[0], name
        if place.columns:
            assert place.columns.length == parameter.shape[1], name
        assert (place.layer is None) == (".layer" not in f".{name}" and "albert_layer" not in name), name
    assert layers == set(range(table.layers))
    table.check(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("case", CASES)
def test_node_modules_are_linear_layers_of_the_right_width(case):
    family, changes = CASES[case]
    model = tiny(family, "body", **changes)
    table = topology(model.config)
    for layer in range(table.layers):
        heads, neurons = table.attention_output(layer), table.ffn_output(layer)
        assert model.get_submodule(heads).in_features == table.heads * table.head_dim
        assert model.get_submodule(neurons).in_features == table.neurons
        assert table.place(f"{heads}.weight") == Place(
            layer, Part.ATTENTION_OUTPUT, None, Axis("head", table.heads, table.head_dim)
        )
        assert table.place(f"{neurons}.weight") == Place(
            layer, Part.FFN_OUT, None, Axis("neuron", table.neurons)
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_layer_are_complete(family):
    model = tiny(family, "body")
    table = topology(model.config)
    last = table.layers - 1
    parts = {
        table.place(name).part for name, _ in model.named_parameters() if table.place(name).layer == last
    }
    attention = {Part.QUERY_KEY_VALUE} if family == "modernbert" else {Part.QUERY, Part.KEY, Part.VALUE}
    others = {Part.ATTENTION_OUTPUT, Part.ATTENTION_NORM, Part.FFN_IN, Part.FFN_OUT, Part.FFN_NORM}
    assert parts == attention | others


def silenced(family: str, node: str, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns hidden states with one node's input masked by a hook, and with the rows of its parameters zeroed."""
    model = tiny(family, "body")
    table = topology(model.config)
    path = table.attention_output(0) if node == "head" else table.ffn_output(0)
    wanted = {Part.VALUE, Part.QUERY_KEY_VALUE} if node == "head" else {Part.FFN_IN}
    batch = tiny_tokenizer(family)(["the film was good"], return_tensors="pt")

    def mask(_, inputs):
        (x,) = inputs
        axis = table.place(f"{path}.weight").columns
        return (x * (axis.owners() != index),)

    with model.get_submodule(path).register_forward_pre_hook(mask), torch.no_grad():
        hooked = model(**batch).last_hidden_state
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            place = table.place(name)
            if place.layer == 0 and place.part in wanted:
                rows = place.rows.owners() == index
                if place.part is Part.QUERY_KEY_VALUE:
                    rows &= torch.arange(len(rows)) >= 2 * len(rows) // 3
                parameter[rows] = 0
        zeroed = model(**batch).last_hidden_state
    return hooked, zeroed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("node", ["head", "neuron"])
def test_rows_belong_to_the_nodes_that_the_modules_carry(family, node):
    hooked, zeroed = silenced(family, node, 2)
    torch.testing.assert_close(hooked, zeroed, rtol=1e-5, atol=1e-5)
    unmasked = tiny(family, "body")(**tiny_tokenizer(family)(["the film was good"], return_tensors="pt"))
    assert not torch.allclose(hooked, unmasked.last_hidden_state, atol=1e-3)


def test_query_and_key_rows_belong_to_heads_in_fused_projections():
    axis = topology(tiny_config("modernbert", "body")).place("layers.1.attn.Wqkv.weight").rows
    assert (axis.count, axis.size, axis.blocks) == (4, 4, 3)
    assert axis.owners().view(3, 16).tolist() == [[head for head in range(4) for _ in range(4)]] * 3


def test_gated_rows_belong_to_two_halves():
    axis = topology(tiny_config("modernbert", "body")).place("layers.0.mlp.Wi.weight").rows
    assert (axis.count, axis.blocks, axis.length) == (24, 2, 48)
    assert axis.owners()[5] == axis.owners()[24 + 5] == 5


def test_scores_spread_over_an_axis():
    assert Axis("head", 2, 2, 2).spread(torch.tensor([3.0, 5.0])).tolist() == [3, 3, 5, 5, 3, 3, 5, 5]


def test_positions_in_deberta_count_as_queries_and_keys():
    table = topology(tiny_config("deberta-v2", "body"))
    head = Axis("head", 4, 4)
    assert table.place("encoder.layer.0.attention.self.pos_key_proj.bias") == Place(0, Part.KEY, head)
    assert table.place("encoder.layer.0.attention.self.pos_query_proj.weight") == Place(0, Part.QUERY, head)
    assert table.place("encoder.rel_embeddings.weight") == Place(None, Part.RELATIVE)


def test_layers_of_albert_are_counted_once():
    table = topology(tiny_config("albert", "body"))
    assert (table.layers, tiny_config("albert", "body").num_hidden_layers) == (1, 3)
    grouped = topology(tiny_config("albert", "body", num_hidden_groups=2, inner_group_num=3))
    name = "encoder.albert_layer_groups.1.albert_layers.2.ffn.bias"
    assert grouped.place(name) == Place(5, Part.FFN_IN, Axis("neuron", 24))
    assert grouped.ffn_output(5) == "encoder.albert_layer_groups.1.albert_layers.2.ffn_output"


def test_sizes_come_from_each_family_s_own_settings():
    table = topology(DistilBertConfig())
    assert (table.layers, table.heads, table.head_dim, table.neurons) == (6, 12, 64, 3072)
    table = topology(AutoConfig.for_model("modernbert"))
    assert (table.layers, table.heads, table.head_dim, table.neurons) == (22, 12, 64, 1152)


@pytest.mark.parametrize(
    "name",
    [
        "classifier.weight",
        "bert.embeddings.word_embeddings.weight",
        "encoder.layer.2.output.dense.weight",
        "encoder.layer.0.output.dense.scale",
        "encoder.layer.0.adapter.weight",
        "encoder.layer.x.output.dense.weight",
    ],
)
def test_an_unknown_parameter_is_named(name):
    with pytest.raises(MergeError) as error:
        topology(tiny_config("bert", "body")).place(name)
    assert str(error.value) == (
        f"bert: no place known for {name}; methods that weigh heads, neurons or layers cannot treat them, "
        "method `average` still can"
    )


def test_all_unknown_parameters_are_named_at_once():
    with pytest.raises(MergeError, match=r"no place known for a\.weight; b\.weight; methods"):
        topology(tiny_config("bert", "body")).check(["a.weight", "pooler.dense.bias", "b.weight"])


@pytest.mark.parametrize(
    "name",
    [
        "encoder.albert_layer_groups.0.albert_layers.1.ffn.bias",
        "encoder.albert_layer_groups.1.albert_layers.0.ffn.bias",
    ],
)
def test_layers_beyond_the_last_are_unknown(name):
    with pytest.raises(MergeError, match="no place known"):
        topology(tiny_config("albert", "body")).place(name)


def test_layers_are_numbered_from_zero():
    table = topology(tiny_config("bert", "body"))
    for layer in (-1, 2):
        with pytest.raises(IndexError, match=f"layer {layer} of 2"):
            table.ffn_output(layer)


def test_an_unknown_family_still_averages():
    with pytest.raises(
        MergeError,
        match=r"no topology for models of type 'opt' \(.*known: albert, .*\), so their heads and neurons are "
        r"not known; methods without data, regmean and --importance diagonal still work",
    ):
        topology(OPTConfig())
