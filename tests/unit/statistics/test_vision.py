"""Statistics of image models and of CLIP's towers, against float64 autograd on one image at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from plait.encoders.topology import TABLES, topology
from plait.statistics.estimate import estimate_statistics
from tests.reference import statistics as reference
from tests.vision import FAMILIES, tiny_vision

NODES = {
    "vit": ("layers.{}.attention.o_proj", "layers.{}.mlp.fc2"),
    "dinov2": ("encoder.layer.{}.attention.o_proj", "encoder.layer.{}.mlp.fc2"),
    "dinov2-swiglu": ("encoder.layer.{}.attention.o_proj", "encoder.layer.{}.mlp.down_proj"),
}


def images(count: int = 5) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    pixels = torch.randn(count, 3, 8, 8, generator=draw, dtype=torch.float64)
    return {"pixel_values": pixels, "labels": torch.randint(3, (count,), generator=draw)}


def one_by_one(whole: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{name: value[i : i + 1] for name, value in whole.items()} for i in range(len(whole["pixel_values"]))]


def cut(whole: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    count = len(whole["pixel_values"])
    return [{name: value[i : i + size] for name, value in whole.items()} for i in range(0, count, size)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_place(family: str) -> None:
    model = tiny_vision(family, head=False)
    table = topology(model.config)
    shapes = {name: tuple(value.shape) for name, value in model.base_model.named_parameters()}
    table.check(shapes)
    for name, shape in shapes.items():
        place = table.place(name)
        assert place.rows is None or place.rows.length == shape[0]
        assert place.columns is None or place.columns.length == shape[1]
    assert {table.place(name).layer for name in shapes} == {None, 0, 1}
    for layer in range(table.layers):
        assert model.base_model.get_submodule(table.attention_output(layer)).weight.shape[1] == 16
        assert model.base_model.get_submodule(table.ffn_output(layer)).weight.shape[1] == table.neurons


@pytest.mark.parametrize("labels", ["given", "exact"])
@pytest.mark.parametrize("family", NODES)
def test_the_diagonal(family: str, labels: Any) -> None:
    model = tiny_vision(family).double()
    found = estimate_statistics(model, cut(images(), 2), estimator="diagonal", labels=labels)
    for name, value in reference.diagonal(model, "sequence", one_by_one(images()), labels).items():
        torch.testing.assert_close(found.of(name), value, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("family", NODES)
def test_mask_nodes(family: str) -> None:
    model = tiny_vision(family).double()
    found = estimate_statistics(model, cut(images(), 2), estimator="mask_nodes")
    masks, hooks = reference.masks(model.base_model, NODES[family], 2, 4)
    wanted = reference.fisher(model, "sequence", one_by_one(images()), masks)
    for hook in hooks:
        hook.remove()
    for layer in range(2):
        torch.testing.assert_close(found.heads[layer], wanted[f"heads.{layer}"].detach(), rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(found.neurons[layer], wanted[f"neurons.{layer}"].detach(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("family", NODES)
def test_block_traces_are_means_of_the_diagonal(family: str) -> None:
    model = tiny_vision(family).double()
    diagonal, traces = (
        estimate_statistics(model, cut(images(), size), estimator=name)
        for name, size in (("diagonal", 3), ("block_traces", 2))
    )
    for name, value in traces.tensors.items():
        torch.testing.assert_close(value.mean(), diagonal.tensors[name].mean(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov2-swiglu", "clip_vision_model"])
def test_gram(family: str) -> None:
    model = tiny_vision(family, head=False).double()
    inputs = {"pixel_values": images()["pixel_values"]}
    found = estimate_statistics(model, cut(inputs, 2), estimator="gram")
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, x, name=name: seen.setdefault(name, []).append(x[0].detach()[0]))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        for one in one_by_one(inputs):
            model(**one)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(found.tensors)
    for name, rows in seen.items():
        every = torch.cat([row.reshape(-1, row.shape[-1]) for row in rows])
        torch.testing.assert_close(found.of(f"{name}.weight"), every.T @ every / len(every), rtol=1e-9, atol=1e-12)


def test_the_text_tower_reads_texts() -> None:
    model = tiny_vision("clip_text_model").double()
    ids = torch.tensor([[1, 5, 6, 2, 0], [1, 7, 8, 9, 2]])
    found = estimate_statistics(model, [{"input_ids": ids, "attention_mask": (ids != 0).long()}], estimator="gram")
    assert len(found.tensors) == 12
    assert "clip_text_model" in TABLES
