"""Comparisons of sources with the same labels, of teachers, of other architectures; kills and locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.checkpoints.output import one_writer
from plait.cli import invoke
from plait.comparison.result import Comparison
from tests.comparing import rows, source, world

SAME = {"films": ("no", "yes"), "books": ("yes", "no"), "songs": ("no", "yes")}
PARTS = {"sweet": ("cake", "fruit"), "salty": ("bread", "cheese")}


def done(found: Comparison) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in found.report["candidates"] if row["status"] == "done"}


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    place = world(tmp_path_factory.mktemp("same"), SAME)
    return plait.compare(
        {name: place / name for name in SAME},
        data={name: place / f"{name}.train.jsonl" for name in SAME},
        test={name: place / f"{name}.test.jsonl" for name in SAME},
        out=place / "out",
        methods="average,separate,shared,greedy-soup",
        keep="all",
    )


def test_the_same_labels_become_soups_and_ensembles(same: Comparison) -> None:
    found = done(same)
    assert set(found) == {
        "separate", "merge/average", "ensemble/separate", "ensemble/shared", "ensemble/greedy_soup",
    }, same.failed  # fmt: skip
    assert found["ensemble/separate"]["bytes"] == found["separate"]["bytes"]
    assert found["ensemble/separate"]["diversity"]["members"] == 3
    alone = found["separate"]["bytes"] / 3
    assert found["merge/average"]["bytes"] < 1.6 * alone  # headers weigh something in models as small as these
    assert found["merge/average"]["parameters"] < found["ensemble/shared"]["parameters"]
    assert all(set(row["scores"]) == set(SAME) for row in found.values())


def test_an_ensemble_of_the_sources_is_what_its_recipe_makes(same: Comparison, tmp_path: Path) -> None:
    row = done(same)["ensemble/separate"]
    made = plait.run({**same.recipe("ensemble/separate"), "output": str(tmp_path / "together")})
    for task, score in row["scores"].items():
        file = same.folder.parent / f"{task}.test.jsonl"
        assert plait.evaluate(made, file).tasks["model"].metrics["accuracy"] == pytest.approx(score["value"])


def test_a_soup_is_what_evaluate_says(same: Comparison) -> None:
    folder = same.path("ensemble/greedy_soup")
    assert folder is not None
    for task, score in done(same)["ensemble/greedy_soup"]["scores"].items():
        scored = plait.evaluate(folder, same.folder.parent / f"{task}.test.jsonl", sources=False)
        assert scored.tasks["model"].metrics["accuracy"] == pytest.approx(score["value"])


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = world(tmp_path_factory.mktemp("teachers"), PARTS)
    both = [(place / f"{name}.test.jsonl").read_text() for name in PARTS]
    (place / "both.jsonl").write_text("".join(both))
    texts = [json.loads(line)["text"] for line in "".join(both).splitlines()]
    (place / "texts.txt").write_text("\n".join(texts) + "\n")
    return place


def test_rows_over_all_labels_are_answered_by_everybody(teachers: Path) -> None:
    found = plait.compare(
        {name: teachers / name for name in PARTS},
        test={"both": teachers / "both.jsonl"},
        texts=teachers / "texts.txt",
        out=teachers / "out",
        methods="average,auto",
    )
    rows_found = done(found)
    assert set(rows_found) == {"separate", "merge/average", "amalgamate/auto"}, found.failed
    assert set(rows_found["separate"]["scores"]) == {"both"}
    student = rows_found["amalgamate/auto"]
    assert student["history"]
    assert student["routing"]["teachers"] == list(PARTS)
    assert student["routing"]["labels"] == ["cake", "fruit", "bread", "cheese"]
    scored = plait.evaluate(teachers / "out" / "candidates" / "amalgamate-auto", teachers / "both.jsonl", sources=True)
    model = scored.tasks["model"]
    assert model.metrics["accuracy"] == pytest.approx(student["scores"]["both"]["value"])
    together = model.sources["all teachers, logits side by side"]["accuracy"]
    assert together == pytest.approx(rows_found["separate"]["scores"]["both"]["value"])


def test_other_architectures_teach_a_student(tmp_path: Path) -> None:
    place = world(tmp_path / "bert", {"sweet": PARTS["sweet"]})
    model = source(place, "salty", PARTS["salty"], seed=3, family="roberta")
    rows(model, place / "salty.test.jsonl", 30, seed=7)
    (place / "texts.txt").write_text("\n".join(f"the film was good and {i}" for i in range(60)) + "\n")
    found = plait.compare(
        {"sweet": place / "sweet", "salty": place / "salty"},
        test={name: place / f"{name}.test.jsonl" for name in PARTS},
        texts=place / "texts.txt",
        out=place / "out",
    )
    assert set(done(found)) == {"separate", "amalgamate/teacher"}, found.failed
    ways = {way["way"]: way["reason"] for way in found.report["possible"] if not way["possible"]}
    assert "different architectures" in ways["merge"]
    assert found.report["conflicts"] is None


def line(place: Path, methods: str) -> list[str]:
    given = [f"--test={name}={place}/{name}.test.jsonl" for name in PARTS]
    names = [f"{name}={place / name}" for name in PARTS]
    return ["compare", *names, *given, "--methods", methods, "-o", str(place / "killed")]


def test_a_killed_comparison_goes_on(teachers: Path) -> None:
    out = teachers / "killed"
    running = subprocess.Popen([sys.executable, "-m", "plait", *line(teachers, "average,ties,karcher,tsv,cart,lines")])
    try:
        end = time.monotonic() + 120
        while len(list(out.glob("cells/*.npz"))) < 2 and running.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGKILL)
    finally:
        running.wait()
    kept = {file.name: file.stat().st_mtime_ns for file in out.glob("cells/*.npz")}
    assert len(kept) >= 2
    assert plait.inspect(out)["kind"].startswith("comparison")
    assert invoke([*line(teachers, "average,ties,karcher,tsv,cart,lines"), "-q"]) == 0
    after = {file.name: file.stat().st_mtime_ns for file in out.glob("cells/*.npz")}
    assert {name: after[name] for name in kept} == kept
    assert len(after) == 7
    assert not list(teachers.glob(".killed*"))


def test_one_process_at_a_time(teachers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = "import sys\nfrom plait.checkpoints.output import one_writer\n" \
              "with one_writer(sys.argv[1]):\n    print('here', flush=True); sys.stdin.read()\n"  # fmt: skip
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(teachers / "killed")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        assert invoke([*line(teachers, "average"), "-q"]) == 2
        assert "is being written by process" in capsys.readouterr().err
    finally:
        holder.communicate()
    with one_writer(teachers / "killed"):
        pass
