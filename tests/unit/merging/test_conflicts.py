"""The conflict map equals its definition in float64, reads in pieces, and says what it was measured from."""

from __future__ import annotations

import json

import pytest
import torch

from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint
from plait.errors import MergeError
from plait.merging import conflicts
from plait.merging.chunks import InMemory
from plait.merging.conflicts import compare_changes, conflict_map, rows_of
from tests.models import FAMILIES, save, tiny
from tests.reference import conflicts as reference


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    """Returns a base and three sources of it."""
    folder = tmp_path_factory.mktemp("sources")
    models = {
        "base": tiny("bert", "body", drift=0),
        **{n: tiny("bert", seed=s) for s, n in enumerate("abc", 1)},
    }
    return [open_checkpoint(save(model, folder / name), name=name) for name, model in models.items()]


def of_layer(source: Checkpoint, layer: str) -> torch.Tensor:
    names = [n for n in sorted(source.body) if layer in n]
    return torch.cat([source.read(source.body[n]).double().reshape(-1) for n in names])


@pytest.mark.parametrize("based", [True, False])
def test_it_is_the_definition(opened: list[Checkpoint], based: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.merging.chunks.CHUNK", 37)
    base, *sources = opened
    found = conflict_map(sources, base if based else None)
    assert found["layers"] == ["embeddings", "layer 0", "layer 1", "after the layers"]
    assert found["origin"] == ("base" if based else "mean of the sources")
    assert found["chance"] == (0.0 if based else -0.5)
    assert [(p["a"], p["b"]) for p in found["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    vectors = reference.changes(
        [of_layer(s, "layer.1.").numpy() for s in sources],
        of_layer(base, "layer.1.").numpy() if based else None,
    )
    for pair, (i, j) in zip(found["pairs"], [(0, 1), (0, 2), (1, 2)], strict=True):
        assert pair["cosine"][2] == pytest.approx(reference.cosine(vectors[i], vectors[j]), rel=1e-9)
        assert pair["sign"][2] == pytest.approx(reference.sign_agreement(vectors[i], vectors[j]), rel=1e-12)
    assert found["norms"]["a"][2] == pytest.approx(sum(x * x for x in vectors[0]) ** 0.5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_of_two_sources_without_a_base_the_mean_decides(opened: list[Checkpoint]) -> None:
    found = conflict_map(opened[1:3])
    assert found["chance"] == -1.0
    assert found["pairs"][0]["cosine"] == pytest.approx([-1.0] * 4)


def test_what_nobody_changed_has_no_direction(opened: list[Checkpoint]) -> None:
    found = conflict_map([opened[0], opened[1]], opened[0])
    assert found["pairs"][0]["cosine"] == [None] * 4
    assert found["pairs"][0]["sign"] == [None] * 4


def test_other_shapes_and_absent_parameters_are_named() -> None:
    a = InMemory("a", {"x": torch.ones(3), "y": torch.ones(2)})
    b = InMemory("b", {"x": torch.zeros(3), "y": torch.ones(4)})
    found = compare_changes(
        [a, b], ["x", "y", "z"], InMemory("base", {"x": torch.zeros(3), "y": torch.ones(2)})
    )
    assert list(found.sums) == ["x"]
    assert found.skipped == ("y", "z")
    with pytest.raises(MergeError, match="share no parameter of one shape"):
        compare_changes([a, b], ["y"])
    with pytest.raises(MergeError, match="at least two"):
        conflict_map([])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_follow_the_forward_pass(family: str) -> None:
    from plait.encoders.topology import topology_of

    model = tiny(family, "body")
    names = [name for name, _ in model.named_parameters()]
    rows = list(dict.fromkeys(rows_of(names[::-1], topology_of(model.config)).values()))
    assert rows[:2] == ["embeddings", "layer 0"]
    inside = [row for row in rows if row.startswith("layer")]
    assert inside == [f"layer {i}" for i in range(len(inside))]
    if family != "deberta-v2":  # only the table knows where its convolution stands
        assert list(dict.fromkeys(rows_of(names, None).values())) == rows


def test_memory_is_that_of_a_chunk(opened: list[Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = conflicts.sums_of
    monkeypatch.setattr("plait.merging.chunks.CHUNK", 64)
    monkeypatch.setattr(
        conflicts, "sums_of", lambda changes: (seen.append(changes.numel()), real(changes))[1]
    )
    conflict_map(opened[1:], opened[0])
    assert max(seen) <= 3 * 64
