"""Two students from one scoring of the texts: a script that asserts its own claim.

Run it after `make demo`, which leaves teachers, texts and a store of what the teachers say in demo/:

    python examples/a_second_student.py demo
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import plait


def main(folder: Path) -> None:
    place = folder / "amalgamation"
    teachers = {name: place / "teachers" / name for name in ("first", "second")}
    first = json.loads((place / "student" / "plait.json").read_text())

    with tempfile.TemporaryDirectory() as scratch:
        # Another way to learn, from the posteriors that the first student left behind.
        second = plait.amalgamate(
            teachers,
            texts=place / "data" / "unlabelled.txt",
            student="first",  # which starts from the first teacher
            store=place / "student.posteriors",
            gate="energy",
            target="soft",
            epochs=2,
            learning_rate=2e-4,
            max_length=48,
            out=Path(scratch) / "second",
        )
        for name, report in (("first student", first), ("second student", second.report)):
            cost = report["forward_equivalents"]
            print(
                f"{name}: teachers {cost['teachers_now']:.2f} + student {cost['student']:.2f} passes a text"
            )
        # The claim: no teacher was run again, and the student knows the labels of both.
        assert second.report["forward_equivalents"]["teachers_now"] == 0
        assert len(second.labels) == 8
        print(second.predict(["Compute the eigenvalues of a symmetric matrix."]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
