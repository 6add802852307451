"""Which parameters are linear weights of layers, and how deep they lie: by the table, and by names elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, Olmo2Config, T5Config, T5EncoderModel

from plait.encoders.topology import topology_of
from plait.merging.layout import Layout
from tests.models import FAMILIES, tiny


def linear_weights(model: nn.Module, layers: str) -> set[str]:
    return {
        f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear) and layers in f".{name}"
    }


def found(model: nn.Module, layout: Layout) -> set[str]:
    return {name for name, p in model.named_parameters() if layout.is_linear(name, p.shape)}


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_weights_are_those_of_the_layers_modules(family: str) -> None:
    model = tiny(family, "body")
    names = [name for name, _ in model.named_parameters()]
    table = topology_of(model.config)
    assert table is not None
    wanted = linear_weights(model, ".albert_layer" if family == "albert" else ".layer")
    assert wanted
    assert found(model, Layout(names, table)) == wanted
    assert found(model, Layout(names)) == wanted, "names alone say the same"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("known", [True, False])
def test_depth_grows_from_0_to_1(family: str, known: bool) -> None:
    model = tiny(family, "body", **({} if family in ("albert", "distilbert") else {"num_hidden_layers": 3}))
    names = [name for name, _ in model.named_parameters()]
    layout = Layout(names, topology_of(model.config) if known else None)
    depths = {name: layout.depth(name) for name in names}
    assert all(0.0 <= depth <= 1.0 for depth in depths.values())
    assert all(depth == 0.0 for name, depth in depths.items() if "embed" in name and "layers." not in name)
    assert all(depth == 1.0 for name, depth in depths.items() if "pooler" in name or "final_norm" in name)
    if family not in ("albert", "distilbert"):
        assert {d for name, d in depths.items() if ".layer" in f".{name}" and ".1." in name} == {0.5}
    if family == "albert":
        assert depths["encoder.albert_layer_groups.0.albert_layers.0.ffn.weight"] == 1.0


def test_a_decoder_that_is_not_in_the_table() -> None:
    config = Olmo2Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        eos_token_id=1, pad_token_id=0, bos_token_id=2,
    )
    assert topology_of(config) is None
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    layout = Layout([name for name, _ in model.named_parameters()])
    assert found(model, layout) == linear_weights(model, ".layers")
    depths = {name: layout.depth(name) for name, _ in model.named_parameters()}
    assert depths["embed_tokens.weight"] == 0.0
    assert [depths[f"layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [0.0, 0.5, 1.0]
    assert depths["norm.weight"] == 1.0


def test_tables_inside_layers_are_no_linear_weights() -> None:
    config = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    with torch.device("meta"):
        model = T5EncoderModel(config)
    names = [name for name, _ in model.named_parameters()]
    layout = Layout(names)
    assert any("relative_attention_bias" in name for name in names)
    assert found(model, layout) == linear_weights(model, ".block")
    assert {layout.depth(name) for name in names if ".block.1." in name} == {1.0}


@pytest.mark.parametrize(
    ("name", "shape", "linear", "depth"),
    [
        ("transformer.h.1.mlp.c_fc.weight", (4, 6), True, 1.0),
        ("transformer.h.0.ln_1.weight", (4,), False, 0.0),
        ("transformer.h.0.mlp.c_fc.bias", (4,), False, 0.0),
        ("transformer.wte.weight", (9, 4), False, 0.0),
        ("transformer.ln_f.weight", (4,), False, 1.0),
        ("decoder.layers.0.fc1.weight", (4, 6), True, 0.0),
        ("decoder.layers.2.fc1.weight", (4, 6), True, 1.0),
        ("lm_head.weight", (9, 4), False, 1.0),
        ("layers.0.experts.weight", (2, 4, 6), False, 1.0),
    ],
)
def test_by_name(name: str, shape: tuple[int, ...], linear: bool, depth: float) -> None:
    others = ["transformer.h.0.x", "transformer.h.1.x", "decoder.layers.2.x", "layers.0.x"]
    layout = Layout(others)
    assert layout.is_linear(name, shape) is linear
    assert layout.depth(name) == depth


def test_a_name_that_the_table_lacks_is_read_like_any_other() -> None:
    model = tiny("bert", "body")
    names = [*(name for name, _ in model.named_parameters()), "encoder.layer.1.adapter.weight"]
    layout = Layout(names, topology_of(model.config))
    assert layout.is_linear("encoder.layer.1.adapter.weight", (4, 4))
    assert layout.depth("encoder.layer.1.adapter.weight") == 1.0
