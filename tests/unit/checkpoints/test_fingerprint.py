"""What decides a model's answers beside its weights: one fingerprint for statistics and for posteriors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import plait
from plait.checkpoints.checkpoint import open_checkpoint
from plait.hub import TOKENIZER_FILES
from plait.teachers.teacher import teacher_of
from tests.models import save, texts, tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(save(tiny("bert", "sequence"), tmp_path / "model"))


def shorten(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 4}))


def test_statistics_are_estimated_again_when_the_tokenizer_cuts_elsewhere(folder: Path) -> None:
    data = {"text": texts(4), "label": [0, 1, 0, 1]}
    before = plait.estimate(folder, data)
    shorten(folder)
    after = plait.estimate(folder, data)
    assert any(not before.tensors[name].equal(value) for name, value in after.tensors.items())


@pytest.mark.parametrize("name", [*TOKENIZER_FILES, "config.json"])
def test_every_file_counts(folder: Path, name: str) -> None:
    before = open_checkpoint(folder).circumstances
    file = folder / name
    content = json.loads(file.read_text()) if file.is_file() and name.endswith(".json") else {}
    file.write_text(json.dumps({**content, "layer_norm_eps": 1e-3}))
    assert open_checkpoint(folder).circumstances != before


def test_posteriors_and_statistics_know_a_checkpoint_by_the_same_fingerprint(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert teacher_of(checkpoint).circumstances == checkpoint.circumstances
    shorten(folder)
    assert teacher_of(open_checkpoint(folder)).circumstances != checkpoint.circumstances
