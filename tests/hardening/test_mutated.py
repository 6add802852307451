"""Half a minute of mutated files; `make soak` goes on for longer."""

from __future__ import annotations

import os

import pytest

from tests.hardening.soak import Tally, soak
from tests.hardening.world import World


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_files(world: World, seed: int) -> None:
    tally = Tally()
    faults = list(soak(world, seed, int(os.environ.get("PLAIT_MUTATIONS", "100")), tally))
    assert faults == []
    assert tally.refused > 20
    assert tally.fine > 10
