"""The folder of two teachers and their base; a file whose tests need others has a `place` of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.two_teachers import NAMES, Paths, save_teachers


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teachers(tmp_path_factory.mktemp("models"))


@pytest.fixture
def teachers(place: Path) -> Paths:
    return {name: str(place / name) for name in NAMES}
