"""From statistics to weights: the table of the paper, ours, and the normalisations."""

from __future__ import annotations

import re

import pytest
import torch

from plait.encoders.topology import topology
from plait.errors import MergeError, OutputError, RecipeError, SourceError
from plait.statistics.estimate import estimate_statistics
from plait.statistics.importance import MAPPINGS, NORMALIZATIONS, Statistics, as_importance, load_statistics
from tests.batches import batch
from tests.models import FAMILIES, tiny
from tests.reference.statistics import paper_weights


def nodes(family, head="sequence", **options):
    model = tiny(family, head)
    found = estimate_statistics(model, [batch(family, head)], **options)
    return model, found, topology(model.config)


def part_of(name):
    """The column of the paper's table that a BERT parameter stands in."""
    layer = re.match(r"bert\.encoder\.layer\.(\d+)\.", name)
    for part in ("query", "key", "value", "attention", "intermediate"):
        if part in name:
            return int(layer[1]), part
    return (int(layer[1]), "output") if layer else (None, "")


def test_the_paper_mapping_is_the_authors_table():
    model, found, table = nodes("bert")
    importance = as_importance(found, table)
    for name, parameter in model.named_parameters():
        if name.startswith("classifier"):
            assert importance.of(name) is None
            continue
        layer, part = part_of(name)
        wanted = paper_weights(found.heads, found.neurons, 4, layer, part)
        wanted = wanted.reshape(-1, *[1] * (parameter.dim() - 1))
        torch.testing.assert_close(importance.of(name), wanted)


def test_the_structural_mapping_adds_values_and_both_outputs():
    _, found, table = nodes("bert")
    importance = as_importance(found, table, mapping="structural")
    heads, neurons = found.heads[1].repeat_interleave(4), found.neurons[1]
    inside = "encoder.layer.1."
    for part in ("query", "key", "value"):
        torch.testing.assert_close(importance.of(f"{inside}attention.self.{part}.weight"), heads.unsqueeze(1))
        torch.testing.assert_close(importance.of(f"{inside}attention.self.{part}.bias"), heads)
    torch.testing.assert_close(importance.of(f"{inside}attention.output.dense.weight"), heads.unsqueeze(0))
    torch.testing.assert_close(importance.of(f"{inside}output.dense.weight"), neurons.unsqueeze(0))
    torch.testing.assert_close(importance.of(f"{inside}intermediate.dense.weight"), neurons.unsqueeze(1))
    torch.testing.assert_close(importance.of(f"{inside}output.dense.bias"), neurons.mean().reshape(1))


def test_a_fused_projection_is_weighed_like_its_three_parts():
    _, found, table = nodes("modernbert")
    rows, mean = found.heads[0].repeat_interleave(4), found.heads[0].mean()
    fused = "layers.0.attn.Wqkv.weight"
    paper = as_importance(found, table).of(fused)
    torch.testing.assert_close(paper[:, 0], torch.cat([rows, rows, mean.expand(16)]))
    structural = as_importance(found, table, mapping="structural").of(fused)
    torch.testing.assert_close(structural[:, 0], rows.repeat(3))
    gated = as_importance(found, table).of("layers.0.mlp.Wi.weight")
    torch.testing.assert_close(gated[:, 0], found.neurons[0].repeat(2))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("estimator", ["mask_nodes", "diagonal", "block_traces"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_fit_every_parameter_and_normalise_the_body(family, estimator, mapping, normalize):
    model, found, table = nodes(family, estimator=estimator)
    importance = as_importance(found, table, mapping=mapping, normalize=normalize)
    body = {}
    for name, parameter in model.base_model.named_parameters():
        weights = importance.of(name)
        assert weights.dim() == parameter.dim(), name
        assert torch.equal(weights, importance.of(f"{model.base_model_prefix}.{name}"))
        body[name] = weights.expand(parameter.shape).double()
    entries = torch.cat([weights.flatten() for weights in body.values()])
    if normalize == "mean":
        assert float(entries.mean()) == pytest.approx(1)
    if normalize == "l2":
        assert float(entries.norm()) == pytest.approx(1)
    if normalize == "tensor":
        assert {round(float(weights.mean()), 5) for weights in body.values()} <= {0.0, 1.0}


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_rounding_is_not_information(normalize):
    _, found, _ = nodes("bert", "qa", estimator="diagonal")
    assert found.of("encoder.layer.0.attention.self.key.bias").any()
    importance = as_importance(found, normalize=normalize)
    assert not importance.of("encoder.layer.0.attention.self.key.bias").any()
    assert not importance.of("encoder.layer.1.output.LayerNorm.bias").any()
    assert importance.of("encoder.layer.0.attention.self.query.bias").any()


def test_what_is_not_known_is_none():
    _, found, table = nodes("bert", "token")
    assert as_importance(found, table).of("pooler.dense.weight") is None
    assert as_importance(found, table).of("classifier.weight") is None
    with pytest.raises(MergeError, match="encoder\\.surprise\\.weight"):
        as_importance(found, table).of("encoder.surprise.weight")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mapping": "papers"}, r"unknown mapping 'papers'.*did you mean 'paper'"),
        ({"normalize": "L1"}, r"unknown normalization 'L1'.*known: l2, mean, none, tensor"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        as_importance(Statistics("diagonal", {}), **options)


def test_mask_nodes_need_a_topology():
    with pytest.raises(MergeError, match="needs the topology"):
        as_importance(Statistics("mask_nodes", {}))


def test_files_that_are_no_statistics_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(
        SourceError, match=r"no statistics at .*missing.safetensors; `plait estimate` writes them"
    ):
        load_statistics(tmp_path / "missing.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"1234")
    with pytest.raises(SourceError, match=r"broken.safetensors is not a readable safetensors file"):
        load_statistics(tmp_path / "broken.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(SourceError, match=r"weights.safetensors holds tensors but no statistics"):
        load_statistics(tmp_path / "weights.safetensors")


def test_statistics_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write statistics to"):
        Statistics("diagonal", {"x": torch.zeros(1)}).save(tmp_path / "file" / "x.safetensors")
