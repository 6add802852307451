"""Compares the sources that `sources.py` made, and judges the choice on the half of the test rows that was held out.

    python experiments/compare/run.py [six] [reviews] [snippets] [--budget 30m]

Each comparison lies in work-files/compare/<set>/comparison (goes on where it was stopped); what is kept in git is
beside this file: results/<set>.json (its comparison.json), results/<set>.held.json (the same candidates on the held-out
rows) and, where Chromium is at hand, results/<set>-1400.png and results/<set>-390.png.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from sources import HERE, REVIEWS, SIX, WORK, base

RESULTS = HERE / "results"


def given(name: str, part: str) -> dict[str, Any]:
    """Returns the arguments of one comparison; `part` is test, or held for the rows that it never saw."""
    if name == "snippets":
        teachers = [f"teacher{i}" for i in range(1, 5)]
        files = {t: f"data/{t}.parquet" for t in teachers}
        test = {"union": f"data/union.{part}.parquet"}
        return {"sources": {t: t for t in teachers}, "data": files, "test": test, "texts": "data/texts.parquet"}
    sources = {n: n for n in (REVIEWS if name == "reviews" else SIX)}
    told: dict[str, Any] = {"tasks": {",".join(sources): "sentiment"}} if name == "reviews" else {}
    files = {n: f"data/{n}.parquet" for n in sources}
    return {"sources": sources, "data": files, "test": {n: f"data/{n}.{part}.parquet" for n in sources}, **told}


def compare(name: str, part: str, out: str, budget: str | None) -> Any:
    import plait

    arguments = given(name, part)
    return plait.compare(arguments.pop("sources"), out=out, base=base(), budget=budget, keep="all", **arguments)


def screenshots(page: Path, name: str) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        return
    for width, height in ((1400, 3200), (390, 3200)):
        with tempfile.TemporaryDirectory() as profile:
            subprocess.run(
                [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
                 "--hide-scrollbars", f"--window-size={width},{height}",
                 f"--screenshot={RESULTS / f'{name}-{width}.png'}", page.as_uri()],
                check=True, capture_output=True, timeout=120,
            )  # fmt: skip


def judged(seen: dict[str, Any], held: dict[str, Any]) -> dict[str, Any]:
    """Returns what the recommended candidate and the best one keep on the held-out rows."""
    rows = {c["id"]: c for c in held["candidates"] if c["status"] == "done" and c["id"] != "separate"}
    chosen, best = seen["recommended"]["id"], max(rows, key=lambda i: rows[i]["mean_relative"])
    kept = {i: {"mean_relative": c["mean_relative"], "interval": c["interval"]} for i, c in rows.items()}
    low, high = rows[best]["interval"]
    within = chosen in rows and low <= rows[chosen]["mean_relative"] <= high
    return {"recommended": chosen, "best": best, "within one interval of the best": within, "candidates": kept}


def run(name: str, budget: str | None) -> None:
    os.chdir(WORK / name)
    compare(name, "test", "comparison", budget)
    if not Path("held").exists():  # models and statistics are there: only the rows are new
        shutil.copytree("comparison", "held")
    compare(name, "held", "held", budget)
    seen, held = (json.loads(Path(out, "comparison.json").read_text()) for out in ("comparison", "held"))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(seen, indent=1) + "\n")
    (RESULTS / f"{name}.held.json").write_text(json.dumps(judged(seen, held), indent=1) + "\n")
    screenshots(Path("comparison", "index.html").resolve(), name)
    print(name, json.dumps({k: v for k, v in judged(seen, held).items() if k != "candidates"}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=["snippets", "six", "reviews"])
    parser.add_argument("--budget", default=None, help="such as 30m; default: that of the default candidates")
    arguments = parser.parse_args()
    for chosen in arguments.sets:
        run(chosen, arguments.budget)
