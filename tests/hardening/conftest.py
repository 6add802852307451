"""One small world for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hardening.harness import copied
from tests.hardening.world import World, build


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield build(tmp_path_factory.mktemp("hardening") / "world")


@pytest.fixture
def copy(world: World, tmp_path: Path):
    """Returns a fresh copy of one thing of the world, to be damaged."""
    return lambda kind: copied(world.root / kind, tmp_path)
