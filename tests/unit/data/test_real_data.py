"""The research corpora, where they lie on this machine: read with their label names, no row lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from plait.data import read_examples

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("PLAIT_DATA", ROOT.parent / "shared" / "datasets"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "index.json").exists(), reason=f"no data sets in {DATA}; set PLAIT_DATA"),
]


def index():
    return json.loads((DATA / "index.json").read_text()) if (DATA / "index.json").exists() else {}


@pytest.mark.parametrize("name", sorted(index()))
def test_every_split_is_read_whole(name):
    about = index()[name]
    for split, rows in about["rows"].items():
        examples = read_examples(DATA / name / f"{split}.parquet")
        assert len(examples) == rows
        if about["labels"] == "float":
            assert examples.problem_type == "regression"
        else:
            assert examples.label_names == tuple(about["labels"])
            assert max(examples.labels) < len(about["labels"])
