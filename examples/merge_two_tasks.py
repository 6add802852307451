"""Two fine-tuned encoders become one: a script that asserts its own claim.

Run it after `make demo`, which leaves its checkpoints in demo/:

    python examples/merge_two_tasks.py demo
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import plait


def main(folder: Path) -> None:
    tasks = ("library", "kind")
    data = {task: folder / "data" / f"{task}.train.jsonl" for task in tasks}
    held_back = {task: folder / "data" / f"{task}.test.jsonl" for task in tasks}
    sources = {task: folder / "sources" / task for task in tasks}

    with tempfile.TemporaryDirectory() as scratch:
        # Each source's own data say which of its weights count; the head of each task stays as it is.
        merged = plait.merge(sources, data=data, out=Path(scratch) / "merged")
        scores = plait.evaluate(merged, held_back)
        for task in tasks:
            print(f"{task}: {scores[task]['accuracy']:.3f}, {scores.tasks[task].relative:.0%} of its source")

        # One encoder serves both tasks …
        assert merged.task("library").base_model is merged.task("kind").base_model
        # … and one pass answers both questions about a text.
        answers = merged.predict("Compute the eigenvalues of a symmetric matrix.")
        print({task: answers[task][0]["label"] for task in tasks})
        # The claim: half the size, and still far above chance on both (1/8 and 1/4).
        assert scores["library"]["accuracy"] > 2 / 8
        assert scores["kind"]["accuracy"] > 2 / 4


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
