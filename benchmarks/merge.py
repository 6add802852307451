"""Merging four RoBERTa-large-sized checkpoints on a RAM disk: time and memory, beside plain copying and mergekit.

    python benchmarks/merge.py make                                  # five checkpoints of 1.42 GB (four and their base)
    python benchmarks/merge.py run --group linear --runs 7 --peers /tmp/peers/bin/python
    python benchmarks/merge.py run --group ties --runs 7 --peers /tmp/peers/bin/python
    python benchmarks/merge.py check --group ties --peers /tmp/peers/bin/python   # do both programs say the same?
    python benchmarks/merge.py report
    python benchmarks/merge.py clean

`--peers` is the Python of an environment made for the purpose: `pip install torch==2.13.0 mergekit==0.1.5`. Without it
only Plait and the copies run. Contestants take turns within a round, and each round begins with another one. Each runs
in a process of its own that imports its libraries first and then waits: `start_seconds` is the time until then,
`seconds` that of the merge alone, opening the checkpoints included. Memory is RssAnon of /proc/PID/status read every
5 ms, less what it was before the merge. While a contestant waits, 6 GB of the RAM disk are written and freed, so that
none pays for memory that a virtual machine has yet to get from its host: the first who needs it waits longer for that
than a merge takes. Every run is one line in results/merge.jsonl, written at once: a benchmark that was stopped goes on
where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from merge_contestants import CONTESTANTS, FOLDER, make

RESULTS = Path(__file__).parent / "results"
ROWS, MACHINE = RESULTS / "merge.jsonl", RESULTS / "merge.machine.json"
GROUPS = {
    "linear": (
        "copy_4_to_4",
        "copy_4_to_4_two_threads",
        "read_4_write_1",
        "plait_average",
        "plait_average_no_hash",
        "mergekit_linear",
    ),
    "ties": ("plait_ties", "plait_ties_model", "mergekit_ties"),
    "others": ("plait_task_arithmetic", "plait_fisher_rows", "plait_dare"),
}
SAME = {"linear": ("plait_average", "mergekit_linear"), "ties": ("plait_ties", "mergekit_ties")}


def anonymous(pid: int) -> float:
    """MB of memory that belong to no file."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def warm(size: int = 6 * 10**9) -> None:
    """Has the machine's memory backed by its host."""
    block = bytes(2**24)
    with (FOLDER / "warm").open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
    (FOLDER / "warm").unlink()


def measure(name: str, peers: str, keep: bool = False) -> dict[str, Any]:
    """Returns time and memory of one run in a process of its own."""
    python = peers if name.startswith("mergekit") else sys.executable
    out = FOLDER / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = [python, str(Path(__file__).with_name("merge_contestants.py")), name, str(out)]
    load = os.getloadavg()[0]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    while (line := process.stdout.readline()).strip() != "ready":
        if not line:
            raise SystemExit(f"{name} does not start")
    start = time.perf_counter() - begin
    warm()
    before, peak, done = anonymous(process.pid), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.stdin.write("go\n")
    process.stdin.flush()
    while not (line := process.stdout.readline()).startswith("{"):
        if not line:
            done.set()
            raise SystemExit(f"{name} failed")
    done.set()
    watcher.join()
    process.communicate("\n")
    if not keep:
        shutil.rmtree(out)
    memory = {
        "anonymous_before_mb": round(before, 1),
        "anonymous_added_mb": round(max(0.0, peak - before), 1),
    }
    times = {key: round(value, 4) for key, value in json.loads(line).items()}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "contestant": name,
        **times,
        "start_seconds": round(start, 3),
        **memory,
        "load_before": round(load, 2),
        "when": now,
    }


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def run(group: str, count: int, peers: str) -> None:
    """Runs what is missing, contestants taking turns."""
    RESULTS.mkdir(exist_ok=True)
    MACHINE.write_text(json.dumps(machine(peers), indent=1) + "\n")
    names = [n for n in GROUPS[group] if peers or not n.startswith("mergekit")]
    done = {name: sum(row["contestant"] == name for row in rows()) for name in names}
    for turn in range(count):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if done[name] <= turn:
                row = measure(name, peers)
                print(json.dumps(row), flush=True)
                with ROWS.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def machine(peers: str) -> dict[str, Any]:
    """Says where this was measured."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    memory = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    code = "import importlib.metadata as m; print({n: m.version(n) for n in ('torch','safetensors','%s')})"
    ask = {"plait": sys.executable, **({"mergekit": peers} if peers else {})}
    found = {
        n: subprocess.run([p, "-c", code % n], capture_output=True, text=True, check=True).stdout.strip()
        for n, p in ask.items()
    }
    return {
        "processor": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory": memory.split(":")[1].strip(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": found,
        "disk": f"{FOLDER} (RAM disk: tmpfs)",
        "models": "4 x RoBERTa-large with a two-label head, float32, random weights, 1.42 GB each, and their base",
        "threads": "Plait and read_4_write_1: 2; copy_4_to_4: 1 unless named; mergekit: torch with 2",
    }


def check(group: str, peers: str) -> None:
    """Prints how much of mergekit's result equals Plait's."""
    from safetensors.torch import load_file

    results = []
    for name in SAME[group]:
        measure(name, peers, keep=True)
        files = sorted((FOLDER / "out").glob("*.safetensors"))
        results.append({k: v for file in files for k, v in load_file(file).items()})
        shutil.rmtree(FOLDER / "out")
    ours, theirs = results
    equal = sum(int((ours[k] == theirs[k]).sum()) for k in ours) / sum(v.numel() for v in ours.values())
    gap = max(float((ours[k] - theirs[k]).abs().max()) for k in ours)
    names = "the same" if ours.keys() == theirs.keys() else "different"
    print(
        f"{' and '.join(SAME[group])}: {names} parameters, equal entries {equal:.6%}, largest gap {gap:.2e}"
    )


def report() -> None:
    """Prints medians and the ratios of the rounds."""
    by = {name: [r for r in rows() if r["contestant"] == name] for name in CONTESTANTS}
    print(f"{'':28}{'runs':>5}{'seconds':>9}{'min':>8}{'max':>8}{'cpu s':>8}{'MB':>8}")
    for name, found in by.items():
        if found:
            seconds = [r["seconds"] for r in found]
            cpu, extra = (
                statistics.median(r[k] for r in found) for k in ("cpu_seconds", "anonymous_added_mb")
            )
            print(
                f"{name:28}{len(found):5}{statistics.median(seconds):9.2f}{min(seconds):8.2f}{max(seconds):8.2f}{cpu:8.2f}{extra:8.1f}"
            )
    pairs = [("plait_average", other) for other in GROUPS["linear"] if not other.startswith("plait")]
    pairs += [(ours, "mergekit_ties") for ours in ("plait_ties", "plait_ties_model")]
    for ours, other in pairs:
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(by[ours], by[other], strict=False)]
        if ratios:
            print(f"{ours} / {other}: median {statistics.median(ratios):.3f} of {len(ratios)} rounds")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "run", "check", "report", "clean"))
    parser.add_argument("--group", choices=tuple(GROUPS), default="linear")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--peers", default="")
    given = parser.parse_args()
    if given.what == "run":
        run(given.group, given.runs, given.peers)
    elif given.what == "check":
        check(given.group, given.peers)
    elif given.what == "clean":
        shutil.rmtree(FOLDER)
    else:
        {"make": make, "report": report}[given.what]()


if __name__ == "__main__":
    main()
