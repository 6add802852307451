"""Merging four models of 140 GB (and their base): what the dry run says, and a slice that is really merged.

    python benchmarks/large.py make --folder /data/large              # 5 x 141 GB of holes: no disk is taken
    python benchmarks/large.py dry --folder /data/large               # the dry run of the whole
    python benchmarks/large.py make --layers 1 --data --folder /data/slice   # the embedding and one layer
    python benchmarks/large.py run --folder /data/slice --method ties average --rounds 3
    python benchmarks/large.py report

The models are Llamas of 70 billion parameters in bfloat16 (80 layers of 8192, 28672 neurons, 8 key-value heads, 128,256
tokens, tied) in shards of 5 GB. The slice has the same tensors, fewer layers: 3.8 GB. Each run is a process of its own,
with the files dropped from the cache before; its memory is RssAnon of /proc/PID/status, every 20 ms, with libraries.
`copy` reads the same bytes by two threads and writes one model, and computes nothing: the speed of the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from merge import anonymous, machine

RESULTS = Path(__file__).parent / "results" / "large.json"
NAMES = ("base", "a", "b", "c", "d")
PIECE = 2**20


def config_of(layers: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=layers,
        num_attention_heads=64, num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500000.0,
        tie_word_embeddings=True, architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip


def make(folder: Path, layers: int, data: bool) -> None:
    """Writes a base and four sources; without `data` their files are holes that read as zeros."""
    import torch
    from transformers import LlamaForCausalLM

    from plait.checkpoints.writer import Slot, header_bytes, split

    config = config_of(layers)
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in LlamaForCausalLM(config).named_parameters()}
    shards = split([Slot(name, torch.bfloat16, shape) for name, shape in shapes.items()], 5 * 10**9)
    for number, name in enumerate(NAMES):
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        config.save_pretrained(place)
        where = {}
        for i, shard in enumerate(shards, start=1):
            file = place / f"model-{i:05d}-of-{len(shards):05d}.safetensors"
            head = header_bytes(shard, {})
            with file.open("wb") as stream:
                stream.write(head)
                for slot in shard if data else ():
                    fill(stream, slot, number)
                stream.truncate(len(head) + sum(slot.size for slot in shard))
                stream.flush()
                os.fsync(stream.fileno())
            where |= {slot.name: file.name for slot in shard}
        total = sum(slot.size for shard in shards for slot in shard)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
        print(f"{place}: {total / 1e9:.1f} GB in {len(shards)} shards", flush=True)


def fill(stream: Any, slot: Any, source: int) -> None:
    """Writes the numbers of one tensor: those of the base, moved a little by each source."""
    import torch

    count = torch.Size(slot.shape).numel()
    base = torch.Generator().manual_seed(len(slot.name))
    moved = torch.Generator().manual_seed(1000 * source + len(slot.name))
    for start in range(0, count, 2**23):
        size = min(2**23, count - start)
        values = torch.randn(size, generator=base).mul_(0.02)
        if source:
            values.add_(torch.randn(size, generator=moved), alpha=2e-3)
        stream.write(values.bfloat16().view(torch.uint8).numpy().data)


def files_of(folder: Path, names: tuple[str, ...] = NAMES) -> list[Path]:
    return [file for name in names for file in sorted((folder / name).glob("*.safetensors"))]


def drop(folder: Path) -> None:
    """Drops the files from the cache, so that they come from the disk."""
    for file in files_of(folder):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def command_of(folder: Path, out: Path, method: str) -> list[str]:
    sources = [str(folder / name) for name in NAMES[1:]]
    base = [] if method in ("average", "slerp", "karcher") else ["--base", str(folder / "base")]
    return ["merge", *sources, *base, "--method", method, "-o", str(out)]


def copy(folder: Path, out: Path, based: bool) -> None:
    """Reads all sources and writes one of them, by two threads: what the disk alone takes."""
    out.mkdir()
    files = [sorted((folder / name).glob("*.safetensors")) for name in (NAMES if based else NAMES[1:])]
    for same in zip(*files, strict=True):
        sources = [os.open(file, os.O_RDONLY) for file in same]
        size = os.fstat(sources[0]).st_size
        target = os.open(out / same[0].name, os.O_RDWR | os.O_CREAT)
        os.ftruncate(target, size)

        def some(first: int, sources: list[int] = sources, size: int = size, target: int = target) -> None:
            buffers = [memoryview(bytearray(PIECE)) for _ in sources]
            for start in range(first * PIECE, size, 2 * PIECE):
                count = min(PIECE, size - start)
                for file, buffer in zip(sources, buffers, strict=True):
                    os.preadv(file, [buffer[:count]], start)
                os.pwrite(target, buffers[0][:count], start)

        workers = [threading.Thread(target=some, args=(i,)) for i in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for file in (*sources, target):
            os.close(file)


def measured(command: list[str]) -> dict[str, float]:
    """Returns the seconds, processor seconds and greatest anonymous memory of a process."""
    begin = time.perf_counter()
    before = os.times()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = 0.0
    while process.poll() is None:
        try:
            peak = max(peak, anonymous(process.pid))
        except FileNotFoundError:
            break
        time.sleep(0.02)
    _, told = process.communicate()
    if process.returncode:
        raise SystemExit(told)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "seconds": round(time.perf_counter() - begin, 2), "cpu_seconds": round(used, 2),
        "anonymous_peak_mb": round(peak, 1), "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def dry(folder: Path, methods: list[str]) -> None:
    for method in methods:
        command = [*command_of(folder, folder / "out", method), "--dry-run", "--json"]
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "plait", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        told = json.loads(done.stdout)
        kept = ("bytes_read", "bytes_written", "shards", "estimated_seconds", "peak_memory_bytes", "rates", "estimate")
        facts = {key: told[key] for key in kept}
        keep({"what": "dry", "method": method, "seconds": round(time.perf_counter() - begin, 2), **facts})


def run(folder: Path, methods: list[str], rounds: int) -> None:
    for _ in range(rounds):
        for method in methods:
            out = folder / "out"
            for what in ("copy", "merge"):
                shutil.rmtree(out, ignore_errors=True)
                drop(folder)
                plait = [sys.executable, "-m", "plait", *command_of(folder, out, method)]
                alone = [sys.executable, __file__, "copy", "--folder", str(folder), "--method", method]
                keep({"what": what, "method": method, **measured(plait if what == "merge" else alone)})
            shutil.rmtree(out, ignore_errors=True)


def keep(row: dict[str, Any]) -> None:
    """Adds a row to the results."""
    print(json.dumps(row), flush=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    found["rows"].append({**row, "when": datetime.now(UTC).isoformat(timespec="seconds")})
    found["machine"] = {**machine(""), "disk": "virtual disk, ext4", "models": "see benchmarks/large.py"}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def report() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    for row in rows:
        if row["what"] == "dry":
            print(f"dry run, {row['method']}: {row['estimate']} (in {row['seconds']} s)")
    for method in dict.fromkeys(row["method"] for row in rows if row["what"] == "merge"):
        pairs = {what: [r for r in rows if r["what"] == what and r["method"] == method] for what in ("copy", "merge")}
        ratios = [m["seconds"] / c["seconds"] for c, m in zip(pairs["copy"], pairs["merge"], strict=True)]
        peak = max(row["anonymous_peak_mb"] for row in pairs["merge"])
        seconds = statistics.median(row["seconds"] for row in pairs["merge"])
        print(f"{method}: {seconds:.1f} s, {statistics.median(ratios):.2f} x copying, {peak:.0f} MB at most")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "dry", "run", "copy", "report"))
    parser.add_argument("--folder", type=Path, default=Path("large"))
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--data", action="store_true")
    parser.add_argument("--method", nargs="+", default=["ties"])
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    match given.what:
        case "make":
            make(given.folder, given.layers, given.data)
        case "dry":
            dry(given.folder, given.method)
        case "run":
            run(given.folder, given.method, given.rounds)
        case "copy":
            copy(given.folder, given.folder / "out", given.method[0] != "average")
        case _:
            report()


if __name__ == "__main__":
    main()
