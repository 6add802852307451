"""Fixtures shared by all tests: a cache of their own, and small sources with data."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)
if os.environ.get("PLAIT_TYPES"):  # types and shapes of all calls are checked, before plait is imported
    install_import_hook("plait", "tests.type_checking.checked")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    return


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Commands log to the captured stderr of their own test, which is closed afterwards."""
    yield
    ours = logging.getLogger("plait")
    ours.handlers.clear()
    ours.propagate = True


def write_rows(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three BERTs of one base: 3 labels, 2 labels, and a regression."""
    from tests.models import save, tiny

    folder = tmp_path_factory.mktemp("sources")
    kinds = {
        "mood": tiny("bert", "sequence", seed=1, labels=3),
        "type": tiny("bert", "sequence", seed=2, labels=2),
        "value": tiny("bert", "regression", seed=3),
    }
    for name, model in kinds.items():
        save(model, folder / name)
    return {name: str(folder / name) for name in kinds}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Labelled rows for each of the three sources, by label name, index and number."""
    from tests.models import texts

    folder = tmp_path_factory.mktemp("data")
    labels: dict[str, list[object]] = {
        "mood": [f"sequence-{i % 3}" for i in range(12)],
        "type": [i % 2 for i in range(12)],
        "value": [i / 4 for i in range(12)],
    }
    return {
        name: str(
            write_rows(
                folder / f"{name}.jsonl",
                [{"text": t, "label": y} for t, y in zip(texts(12, seed=7), labels[name], strict=True)],
            )
        )
        for name in labels
    }
