"""Many mutated files: `python -m tests.hardening.soak --seed 1 --count 3000` prints what went wrong."""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.hardening.harness import copied, listing, run
from tests.hardening.mutations import files_of, mutate
from tests.hardening.world import KINDS, World, build, commands


@dataclass
class Tally:
    """What came of the mutated files."""

    files: int = 0
    runs: int = 0
    fine: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)


def soak(world: World, seed: int, count: int, tally: Tally, *, seconds: float | None = None) -> Iterator[str]:
    """Mutates `count` files, runs on each a command that reads it, and yields every fault."""
    draw, end = random.Random(seed), None if seconds is None else time.monotonic() + seconds
    for number in range(count):
        if end is not None and time.monotonic() > end:
            return
        kind = KINDS[number % len(KINDS)]
        place = Path(tempfile.mkdtemp(prefix="case", dir=world.root.parent))
        try:
            target = copied(world.root / kind, place)
            how = mutate(draw.choice(files_of(target)), draw)
            tally.files += 1
            every = commands(world, kind, target, place)
            for command in every if draw.random() < 0.3 else [draw.choice(every)]:
                before = listing(world.root)
                outcome = run(*command)
                tally.runs += 1
                tally.fine += outcome.code == 0
                tally.refused += outcome.code == 2
                if listing(world.root) != before:
                    outcome.faults.append("wrote into what it reads")
                for fault in outcome.faults:
                    said = f"seed {seed} number {number} {kind} [{how}] {command[0]}: {fault}"
                    tally.faults.append(fault)
                    yield said
        finally:
            shutil.rmtree(place, ignore_errors=True)


def main() -> int:
    """Returns 1 when something went wrong."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=int(os.environ.get("PLAIT_SOAK_SEED", "1000")))
    options.add_argument("--count", type=int, default=10**9)
    options.add_argument("--minutes", type=float, default=float(os.environ.get("PLAIT_SOAK_MINUTES", "30")))
    told = options.parse_args()
    os.environ["PLAIT_CACHE"] = tempfile.mkdtemp(prefix="soak-cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    root = Path(tempfile.mkdtemp(prefix="soak"))
    tally, begun = Tally(), time.monotonic()
    try:
        world = build(root / "world")
        for said in soak(world, told.seed, told.count, tally, seconds=told.minutes * 60):
            sys.stdout.write(ascii(said)[1:-1] + "\n")
            sys.stdout.flush()
    finally:
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(os.environ["PLAIT_CACHE"], ignore_errors=True)
    kinds = collections.Counter(fault.partition(":")[0] for fault in tally.faults)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(
        f"{tally.files} files, {tally.runs} runs in {time.monotonic() - begun:.0f} s: {tally.fine} fine, "
        f"{tally.refused} refused, {len(tally.faults)} faults {dict(kinds)}; peak memory {memory} MB\n"
    )
    return int(bool(tally.faults))


if __name__ == "__main__":
    sys.exit(main())
