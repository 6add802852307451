"""A comparison against the same work done by the single commands, one after another.

    python benchmarks/compare.py work-files/compare/six [--methods heads,regmean,…] [--out FILE]

The folder holds a checkpoint for each name, and `data/NAME.parquet` and `data/NAME.test.parquet`. First
`plait compare` of all merges without training, in a process of its own and with an empty cache of statistics; then the
same command again; then, with another empty cache that the commands share, `plait run` of each candidate's recipe, and
`plait evaluate` of each result and of each source. Wall time of each; the ratio is that of the first to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

RESULTS = Path(__file__).parent / "results" / "compare.json"


def timed(arguments: Sequence[str], cache: Path) -> float:
    """Returns the seconds of one command in a process of its own."""
    start = time.monotonic()
    environment = {**os.environ, "PLAIT_CACHE": str(cache)}
    command = [sys.executable, "-m", "plait", *arguments, "-q"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - start, 2)


def names_in(folder: Path) -> list[str]:
    tests = sorted((folder / "data").glob("*.test.parquet"))
    return [name for file in tests if (folder / (name := file.name.removesuffix(".test.parquet"))).exists()]


def compared(folder: Path, names: Sequence[str], out: Path, options: Sequence[str], cache: Path) -> float:
    given = [f"{name}={folder / name}" for name in names]
    for name in names:
        rows = folder / "data" / name
        given += ["--data", f"{name}={rows}.parquet", "--test", f"{name}={rows}.test.parquet"]
    return timed(["compare", *given, "--only", "merge", *options, "-o", str(out)], cache)


def one_by_one(folder: Path, names: Sequence[str], out: Path, place: Path, cache: Path) -> dict[str, float]:
    """Returns the seconds of each single command."""
    found = {}
    for name in names:
        data = f"{folder}/data/{name}.test.parquet"
        found[f"evaluate {name}"] = timed(["evaluate", str(folder / name), "--data", data], cache)
    for file in sorted((out / "recipes").rglob("*.yaml")):
        recipe: dict[str, Any] = yaml.safe_load(file.read_text())
        target = place / file.stem
        again = place / file.name
        again.write_text(yaml.safe_dump({**recipe, "output": str(target)}))
        found[f"merge {file.stem}"] = timed(["run", str(again)], cache)
        tests = [word for n in names for word in ("--data", f"{n}={folder}/data/{n}.test.parquet")]
        found[f"evaluate {file.stem}"] = timed(["evaluate", str(target), *tests, "--no-sources"], cache)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", default=None, help="as of plait compare; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    names = names_in(arguments.folder)
    options = [] if arguments.methods is None else ["--methods", arguments.methods]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        out = place / "comparison"
        first = compared(arguments.folder, names, out, options, place / "cache")
        second = compared(arguments.folder, names, out, options, place / "cache")
        answer = json.loads((out / "comparison.json").read_text())
        single = one_by_one(arguments.folder, names, out, place, place / "cache-of-single-commands")
    total = round(sum(single.values()), 1)
    found = {
        "sources": names,
        "rows": {task["name"]: task["rows"] for task in answer["tasks"]},
        "candidates": [row["id"] for row in answer["candidates"] if row["status"] == "done"],
        "machine": answer["machine"],
        "seconds": {"compare": first, "again": second, "single commands": total},
        "ratio": round(first / total, 3),
        "single": single,
        "making": {row["id"]: row["seconds"] for row in answer["candidates"] if row["seconds"]},
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: found[name] for name in ("candidates", "seconds", "ratio")}, indent=1))


if __name__ == "__main__":
    main()
