"""The cache of statistics: what it tells apart, and files in it that cannot be read or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import plait
from tests.models import save, texts, tiny

Paths = dict[str, str]


def test_cache_knows_labels_and_settings(tmp_path: Path) -> None:
    model = tiny("bert", "sequence", labels=3)
    rows = {"text": texts(6), "label": [f"sequence-{i % 3}" for i in range(6)]}
    source = save(model, tmp_path / "m")
    first = plait.estimate(str(source), rows)
    config = json.loads((source / "config.json").read_text())
    config["id2label"] = {"0": "sequence-2", "1": "sequence-1", "2": "sequence-0"}
    (source / "config.json").write_text(json.dumps(config))
    turned = plait.estimate(str(source), rows)
    assert not torch.allclose(first.heads, turned.heads)
    config["num_attention_heads"] = 2
    (source / "config.json").write_text(json.dumps(config))
    assert plait.estimate(str(source), rows).heads.shape == (2, 2)


def test_damaged_or_unwritable_cache_does_not_stop_a_merge(
    sources: Paths, data: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    first = plait.estimate(sources["mood"], data["mood"])
    for file in (tmp_path / "cache" / "statistics").iterdir():
        file.write_bytes(b"nonsense")
    assert torch.equal(plait.estimate(sources["mood"], data["mood"]).heads, first.heads)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "file"))
    assert torch.equal(plait.estimate(sources["mood"], data["mood"]).heads, first.heads)
