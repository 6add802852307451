"""The contestants of merge.py: what each imports beforehand, and what of it is timed. Run by merge.py, one by one."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("PLAIT_BENCH", "/dev/shm/plait-bench-merge"))
NAMES = ("s1", "s2", "s3", "s4")
FILE = "model.safetensors"
DENSITY = 0.2


def make() -> None:
    """Writes a base and four checkpoints near it, each a RoBERTa-large with a head for two labels."""
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification

    from plait.checkpoints.writer import Slot, TensorWriter

    config = RobertaConfig(
        vocab_size=50265,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=2,
        architectures=["RobertaForSequenceClassification"],
    )
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in RobertaForSequenceClassification(config).named_parameters()}
    slots = [Slot(name, torch.float32, shape) for name, shape in shapes.items()]
    generator = torch.Generator().manual_seed(0)
    writers = []
    for name in ("base", *NAMES):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        (FOLDER / name).mkdir(parents=True)
        config.save_pretrained(FOLDER / name)
        writers.append(TensorWriter(FOLDER / name, slots))
    for slot in slots:
        start = torch.randn(slot.shape, generator=generator) * 0.05
        writers[0].put_tensor(slot.name, start)
        for writer in writers[1:]:
            writer.put_tensor(slot.name, start + 1e-3 * torch.randn(slot.shape, generator=generator))
    for writer in writers:
        writer.close()


Job = tuple[Callable[[], Any], Callable[[Path], Any]]
"""What is imported beforehand, and what is timed."""


def sizes() -> list[tuple[Path, int]]:
    return [(FOLDER / name / FILE, (FOLDER / name / FILE).stat().st_size) for name in NAMES]


def copy_4_to_4(out: Path, threads: int = 1) -> None:
    """`shutil.copyfile`: the kernel moves the bytes (sendfile or copy_file_range)."""

    def some(first: int) -> None:
        for name in NAMES[first::threads]:
            shutil.copyfile(FOLDER / name / FILE, out / f"{name}.safetensors")

    in_threads(some, threads)


def read_4_write_1(out: Path, threads: int = 2, chunk: int = 2**20) -> None:
    """The same bytes that a merge must read and write, moved by as many threads, nothing computed."""
    files, size = [os.open(path, os.O_RDONLY) for path, _ in sizes()], sizes()[0][1]
    target = os.open(out / FILE, os.O_RDWR | os.O_CREAT)
    os.ftruncate(target, size)

    def some(first: int) -> None:
        buffers = [memoryview(bytearray(chunk)) for _ in files]
        for start in range(first * chunk, size, threads * chunk):
            count = min(chunk, size - start)
            for file, buffer in zip(files, buffers, strict=True):
                os.preadv(file, [buffer[:count]], start)
            os.pwrite(target, buffers[0][:count], start)

    in_threads(some, threads)
    for file in (*files, target):
        os.close(file)


def in_threads(work: Callable[[int], None], count: int) -> None:
    workers = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def plait_imports() -> None:
    from plait.checkpoints.checkpoint import open_checkpoint
    from plait.merging.engine import write_merged
    from plait.merging.rule import RULES

    assert write_merged
    assert len(RULES)
    # Imports the model class, which transformers does when it first meets one.
    open_checkpoint(FOLDER / NAMES[0])


def plait(rule: str, **settings: Any) -> Job:
    def merge(out: Path) -> None:
        import torch

        from plait.checkpoints.checkpoint import open_checkpoint
        from plait.merging.chunks import CheckpointView
        from plait.merging.engine import write_merged
        from plait.merging.rule import RULES

        def part(name: str) -> CheckpointView:
            opened = open_checkpoint(FOLDER / name, name=name)
            return CheckpointView(opened, {stored: stored for stored in opened.headers})

        class Rows:
            def of(self, parameter: str) -> Any:
                shape = sources[0].header(parameter).shape
                return torch.rand(shape[0], *[1] * (len(shape) - 1))

        sources = [part(name) for name in NAMES]
        names = list(sources[0].stored)
        base = part("base") if "base" in RULES[rule].inputs else None
        importances = [Rows()] * len(NAMES) if "importances" in RULES[rule].inputs else None
        write_merged(out, sources, names, RULES[rule], base=base, importances=importances, **settings)

    return plait_imports, merge


def mergekit_imports() -> None:
    import torch
    from mergekit.merge import run_merge

    assert run_merge
    torch.set_num_threads(2)


def mergekit(method: str) -> Job:
    def merge(out: Path) -> None:
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        weight = {"weight": 1.0} | ({"density": DENSITY} if method == "ties" else {})
        content = {
            "merge_method": method,
            "dtype": "float32",
            "models": [{"model": str(FOLDER / name), "parameters": weight} for name in NAMES],
            **({"base_model": str(FOLDER / "base")} if method == "ties" else {}),
            "parameters": {"normalize": True},
        }
        options = MergeOptions(copy_tokenizer=False, lazy_unpickle=True, quiet=True, write_model_card=False)
        run_merge(MergeConfiguration.model_validate(content), str(out), options)

    return mergekit_imports, merge


def nothing() -> None:
    """Imports nothing."""


def two_threads(out: Path) -> None:
    copy_4_to_4(out, threads=2)


CONTESTANTS: dict[str, Job] = {
    "copy_4_to_4": (nothing, copy_4_to_4),
    "copy_4_to_4_two_threads": (nothing, two_threads),
    "read_4_write_1": (nothing, read_4_write_1),
    "plait_average": plait("average"),
    "plait_average_no_hash": plait("average", digests=False),
    "plait_task_arithmetic": plait("task_arithmetic"),
    "plait_fisher_rows": plait("fisher"),
    "plait_dare": plait("dare"),
    "plait_ties": plait("ties", options={"density": DENSITY}),
    "plait_ties_model": plait("ties", options={"density": DENSITY, "scope": "model"}),
    "mergekit_linear": mergekit("linear"),
    "mergekit_ties": mergekit("ties"),
}


def child(name: str, out: Path) -> None:
    """Imports, waits for a line, does the work, reports."""
    imports, work = CONTESTANTS[name]
    imports()
    print("ready", flush=True)
    sys.stdin.readline()
    start, cpu = time.perf_counter(), time.process_time()
    work(out)
    print(
        json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}),
        flush=True,
    )
    sys.stdin.readline()


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]))
