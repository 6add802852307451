"""Jobs killed at each thing they do to files: old or new is there, never neither; the next run ends as if nothing was.

A sample by default; for `PLAIT_SOAK_MINUTES` where they are set, with `PLAIT_SOAK_SEED` or another seed each time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hardening.killing import JOBS, KILLED

ROOT = Path(__file__).parents[2]
LAST = 25
"""Steps before the end of a job among which it puts its output in place and clears up."""


class Killer:
    """A process that does jobs in children, which it kills."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.wholes: dict[str, tuple[int, dict[str, Any]]] = {}
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hardening.killing", str(folder)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        # A pipe, since the size of a file may be limited for what is said as well.
        self.reader = threading.Thread(target=self._listen, daemon=True)
        self.reader.start()
        assert self._answer() == "ready"
        self.before = names(folder) | {"cache", "merged"}

    def _listen(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, job: str, last: int = 0, *options: str) -> tuple[int, int]:
        """Returns exit code and steps of a job that is killed at one of them."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join([job, str(last), *options]) + "\n")
        self.process.stdin.flush()
        code, steps = self._answer().split()
        return int(code), int(steps)

    def said(self) -> str:
        time.sleep(0.1)  # until the last lines are through
        return "".join(self.lines)[-3000:]

    def clear(self) -> None:
        for name in self.left():
            place = self.folder / name
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        shutil.rmtree(self.folder / "cache", ignore_errors=True)

    def left(self) -> set[str]:
        return names(self.folder) - self.before

    def whole(self, job: str) -> tuple[int, dict[str, Any]]:
        """Returns the steps of a job that nobody kills, and all that it leaves."""
        if job not in self.wholes:
            self.clear()
            code, steps = self.run(job)
            assert code == 0, self.said()
            self.wholes[job] = steps, self.contents()
        return self.wholes[job]

    def contents(self) -> dict[str, Any]:
        """Returns every file beside the sources: its bytes, without times in records."""
        found: dict[str, Any] = {}
        for name in sorted(self.left()):
            place = self.folder / name
            for file in [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file()):
                found[str(file.relative_to(self.folder))] = bare(file)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def names(folder: Path) -> set[str]:
    return {place.name for place in folder.iterdir()}


def bare(file: Path) -> Any:
    if file.name != "plait.json":
        return file.read_bytes()
    record = json.loads(file.read_text())
    return json.dumps({name: value for name, value in record.items() if name != "seconds"})


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    folder = tmp_path_factory.mktemp("killed") / "place"
    folder.mkdir()
    found = Killer(folder)
    yield found
    found.close()


OLD: dict[str, Any] = {"out/config.json": b"old", "out/weights": b"old"}


def lay_old(place: Path, job: str) -> dict[str, Any]:
    """Puts something there that may be replaced, and returns it."""
    if job == "estimate":
        import torch

        from plait.statistics.importance import Statistics

        Statistics("diagonal", {"w": torch.zeros(2)}).save(place / "out")
        return {"out": (place / "out").read_bytes()}
    for name, content in OLD.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
    return OLD


def of_output(contents: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in contents.items() if name == "out" or name.startswith("out/")}


def killed(killer: Killer, job: str, step: int, *, over: bool) -> None:
    """Kills a job at a step, looks at what is there, does it again, and looks again."""
    told = f"{job} killed at step {step}{' with --overwrite' if over else ''}"
    _, whole = killer.whole(job)
    killer.clear()
    old = lay_old(killer.folder, job) if over else {}
    options = ["overwrite"] if over else []
    code, _ = killer.run(job, step, *options)
    if code == 0:
        return
    assert code == KILLED, f"{told}: {killer.said()}"
    if job != "posteriors":  # a store is filled shard by shard
        assert of_output(killer.contents()) in (old, of_output(whole)), told
    code, _ = killer.run(job, 0, "resume", *options)
    if code == 2 and job in {"merge", "export", "estimate"} and of_output(killer.contents()) == of_output(whole):
        # It had come to its end, and has no state to be resumed from; what is left goes with the next that writes.
        code, _ = killer.run(job, 0, "resume", "overwrite")
    assert code == 0, f"{told}: {killer.said()}"
    found = killer.contents()
    assert found.keys() == whole.keys(), told
    assert {name: (found[name], whole[name]) for name in whole if found[name] != whole[name]} == {}, told


@pytest.mark.parametrize(
    ("job", "over"),
    [
        ("merge", False), ("merge", True), ("refine", False), ("amalgamate", True), ("ensemble", False),
        ("distilled", False), ("finetune", True), ("export", True), ("estimate", True),
    ],
)  # fmt: skip
def test_a_job_killed_while_it_ends(killer: Killer, job: str, over: bool) -> None:
    steps, _ = killer.whole(job)
    step = random.Random(f"{job} {over}").randrange(max(1, steps - LAST), steps + 1)
    killed(killer, job, step, over=over)


@pytest.mark.parametrize("job", sorted(set(JOBS) - {"distilled", "refine"}))
def test_a_job_killed_on_the_way(killer: Killer, job: str) -> None:
    steps, _ = killer.whole(job)
    killed(killer, job, random.Random(job).randrange(1, steps + 1), over=False)


@pytest.mark.parametrize("job", ["merge", "amalgamate", "distilled", "finetune", "export", "estimate", "posteriors"])
def test_a_disk_that_fills_up(killer: Killer, job: str) -> None:
    for room in (1, 30_000):
        killer.clear()
        code, _ = killer.run(job, 0, f"room={room}")
        if code == 0 and room > 1:
            continue
        assert code == 2, killer.said()
        assert job == "posteriors" or of_output(killer.contents()) == {}
        assert [name for name in killer.left() if name.endswith((".partial", ".old", ".lock"))] == []


@pytest.mark.skipif(not os.environ.get("PLAIT_SOAK_MINUTES"), reason="PLAIT_SOAK_MINUTES is not set")
def test_jobs_killed_for_a_while(killer: Killer) -> None:
    seed = int(os.environ.get("PLAIT_SOAK_SEED", time.time_ns() % 10**6))
    draw, count = random.Random(seed), 0
    end = time.monotonic() + 60 * float(os.environ["PLAIT_SOAK_MINUTES"])
    while time.monotonic() < end:
        job = draw.choice(sorted(JOBS))
        steps, _ = killer.whole(job)
        first = max(1, steps - LAST) if draw.random() < 0.5 else 1
        over = job != "posteriors" and draw.random() < 0.5
        killed(killer, job, draw.randrange(first, steps + 1), over=over)
        count += 1
    assert count, f"seed {seed}"
    sys.stderr.write(f"{count} kills with seed {seed}\n")
