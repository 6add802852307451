"""Searching options and weights on validation rows: through each door, together with others, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import plait
from plait.cli import invoke
from plait.merging.search import run as searching
from plait.merging.search import study as studying
from tests.conftest import write_rows
from tests.models import save, texts, tiny

ROWS = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources and their base; a task's labels are what its source answers, so that sources are right."""
    folder = tmp_path_factory.mktemp("search")
    save(tiny("bert", "body"), folder / "base")
    for seed, (name, labels) in enumerate({"mood": 3, "type": 2}.items(), start=1):
        model = tiny("bert", "sequence", seed=seed, labels=labels, drift=0.3)
        save(model, folder / name)
        task = plait.merge({name: folder / name}, method="average", out=folder / f"{name}-alone")
        for part, at in (("validation", 10), ("test", 20)):
            every = texts(ROWS, seed=at + seed)
            said = [row["label"] for row in task.predict(every, task=name)]
            write_rows(
                folder / f"{name}-{part}.jsonl",
                [{"text": t, "label": y} for t, y in zip(every, said, strict=True)],
            )
    return folder


def told(place: Path, *parts: str) -> list[str]:
    found = [f"mood={place / 'mood'}", f"type={place / 'type'}", "--base", str(place / "base")]
    for part in parts:
        option, kind = part.split(":")
        found += [word for name in ("mood", "type") for word in (f"--{option}", f"{name}={place / name}-{kind}.jsonl")]
    return found


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "plait.json").read_text())


def weights_file(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def as_options(found: dict[str, Any]) -> list[str]:
    return searching.spoken(found["search"]["best"]["values"]).split()


@pytest.mark.parametrize(("method", "more"), [("ties", ()), ("dare", ("--dtype", "bfloat16")), ("tsv", ())])
def test_the_result_is_the_merge_with_what_was_found(place: Path, tmp_path: Path, method: str, more: Any) -> None:
    line = ["merge", *told(place, "validation:validation", "evaluate:test"), "--method", method, *more, "--quiet"]
    assert invoke([*line, "--search", "12", "-o", str(tmp_path / "found")]) == 0
    found = record(tmp_path / "found")
    search = found["search"]
    assert search["trials"] == 12
    assert search["complete"] + search["pruned"] + search["failed"] == 12
    assert search["best"]["score"] >= search["defaults"]
    assert set(search["best"]["values"]) >= {"weight of mood", "weight of type", "scale"}
    assert search["validation"]["mood"]["rows"] == ROWS
    assert {"search", "storage", "validation"}.isdisjoint(found["recipe"])
    assert found["scores"]["tasks"]["mood"]["examples"] == ROWS
    again = ["merge", *told(place, "evaluate:test"), "--method", method, *more, "--quiet", *as_options(found)]
    assert invoke([*again, "-o", str(tmp_path / "again")]) == 0
    assert weights_file(tmp_path / "found") == weights_file(tmp_path / "again")
    plain = record(tmp_path / "again")
    assert {k: v for k, v in plain["recipe"].items() if k != "output"} == {
        k: v for k, v in found["recipe"].items() if k != "output"
    }
    card = (tmp_path / "found" / "README.md").read_text()
    assert "## Search" in card
    assert "The best of 12 trials" in card
    assert list(tmp_path.glob(".*")) == []  # neither the study nor candidates stay


def test_doors_agree(place: Path, tmp_path: Path) -> None:
    line = ["merge", *told(place, "validation:validation"), "--method", "task_arithmetic", "--quiet"]
    assert invoke([*line, "--search", "6", "-o", str(tmp_path / "typed")]) == 0
    sources = {name: str(place / name) for name in ("mood", "type")}
    rows = {name: str(place / f"{name}-validation.jsonl") for name in sources}
    plait.merge(
        sources, base=place / "base", method="task_arithmetic", search=6, validation=rows, out=tmp_path / "called",
        storage=f"sqlite:///{tmp_path / 's.db'}",
    )  # fmt: skip
    recipe = {
        "combine": "merge", "sources": sources, "base": str(place / "base"), "method": "task_arithmetic",
        "search": 6, "validation": rows, "output": str(tmp_path / "run"),
    }  # fmt: skip
    plait.run(recipe)
    best = [record(tmp_path / name)["search"]["best"] for name in ("typed", "called", "run")]
    assert best[0] == best[1] == best[2]


def test_candidates_of_one_pass_are_those_merged_alone(place: Path, tmp_path: Path) -> None:
    found = {}
    for size in ("1", "3"):
        line = ["merge", *told(place, "validation:validation"), "--method", "ties", "--set", "scale=0.9", "--quiet"]
        storage = f"sqlite:///{tmp_path / size}.db"
        more = ["--search", "3", "--search-batch", size, "--storage", storage, "-o", str(tmp_path / f"m{size}")]
        assert invoke([*line, *more]) == 0
        (summary,) = optuna.get_all_study_summaries(storage)
        trials = optuna.load_study(study_name=summary.study_name, storage=storage).trials
        found[size] = [(t.number, t.params, t.value) for t in trials]
    assert found["1"] == found["3"]
    assert "scale" not in found["1"][0][1]


def test_rows_come_from_the_sources_or_are_cut_from_the_test(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["merge", *told(place, "evaluate:test"), "--method", "task_arithmetic", "--search", "2"]
    assert invoke([*line, "-o", str(tmp_path / "cut")]) == 0
    found = record(tmp_path / "cut")
    assert found["search"]["validation"]["mood"]["rows"] == ROWS // 2
    assert found["scores"]["tasks"]["mood"]["examples"] == ROWS // 2
    assert "half of those to evaluate on" in capsys.readouterr().err
    line += [f"--data=mood={place}/mood-validation.jsonl", f"--data=type={place}/type-test.jsonl"]
    assert invoke([*line, "-o", str(tmp_path / "data")]) == 0
    found = record(tmp_path / "data")
    assert found["search"]["validation"]["mood"]["from"].startswith("labelled data of the sources")
    assert found["scores"]["tasks"]["mood"]["examples"] == ROWS
    assert found["search"]["validation"]["type"]["from"].startswith("half of those to evaluate on")


def test_dry_run(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["merge", *told(place, "validation:validation"), "--method", "ties", "--search", "9", "--dry-run", "--json"]
    assert invoke([*line, "-o", str(tmp_path / "m")]) == 0
    found = json.loads(capsys.readouterr().out)["search"]
    assert found["trials"] == 9
    assert found["varied"]["density"] == "0.05 to 1"
    assert found["per_pass"] == 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--search", "3"], "--search needs labelled rows of mood; type to search on: give --validation mood=FILE"),
        (["--search", "3", "--validation", "moood=x"], "validation names unknown task 'moood'"),
        (["--search", "0"], "search"),
        (["--storage", "sqlite:///x.db"], "--storage is of use to --search alone"),
        (["--validation", "mood={p}/mood-test.jsonl"], "--validation is of use to --search alone"),
        (["--search", "3", "--storage", "search.db", "{v}"], "storage 'search.db' is no URL; expected one such as"),
        (["--search", "3", "--storage", "postgresql://me:secret@nowhere.invalid/x", "{v}"], "cannot be opened"),
        (["--search", "3", "--storage", "sqlite:////nowhere/at/all/s.db", "{v}"], "cannot be opened: unable to open"),
        (["--search", "3", "{v}", "--weight", "mood=1", "--weight", "type=1", "--set", "scale=1"],
         "--search: method task_arithmetic has no number left to vary"),
        (["--search", "3", "--evaluate", "mood={p}/mood-validation.jsonl", "{v}"],
         "task mood: 0 of 40 validation rows are not evaluated on as well"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    line = ["merge", *told(place), "--method", "task_arithmetic", "-o", str(tmp_path / "m"), "--quiet"]
    rows = [w for n in ("mood", "type") for w in ("--validation", f"{n}={place}/{n}-validation.jsonl")]
    words = [w for word in more for w in (rows if word == "{v}" else [word.format(p=place)])]
    assert invoke([*line, *words]) == 2
    found = capsys.readouterr().err.strip()
    assert said in found
    assert "secret" not in found
    assert len(found.splitlines()) == 1 or "--search 0" in " ".join(words)
    assert not (tmp_path / "m").exists()


def test_without_the_library(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studying, "find_spec", lambda _: None)
    line = ["merge", *told(place, "validation:validation"), "--method", "ties", "--search", "3", "-o", "m"]
    assert invoke(line) == 2
    assert "needs optuna, which is not installed; run: pip install 'plait[search]'" in capsys.readouterr().err


def test_a_failing_candidate_stops_no_other(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scale of 1.5 times a λ of 2 leaves float16, where the defaults do not; no text is long enough to see it."""
    huge = tmp_path / "huge"
    model = tiny("bert", "sequence", seed=1, labels=3, drift=0.3)
    with torch.no_grad():
        model.bert.embeddings.position_embeddings.weight[-1, 0] = 5e4
    save(model, huge)
    line = ["merge", f"mood={huge}", *told(place, "validation:validation")[1:], "--method", "task_arithmetic"]
    line += ["--dtype", "float16", "--search", "8", "--weight", "type=1"]
    assert invoke([*line, "-o", str(tmp_path / "m")]) == 0
    found = record(tmp_path / "m")["search"]
    assert found["failed"] > 0
    assert found["complete"] > 0
    said = "fails: embeddings.position_embeddings.weight: task_arithmetic gives values beyond float16"
    assert said in capsys.readouterr().err
    line[-1:] = ["mood=2"]
    assert invoke([*line, "--set", "scale=1.5", "-o", str(tmp_path / "n")]) == 2
    assert "all 8 trials failed: embeddings.position_embeddings" in capsys.readouterr().err


def started(place: Path, out: Path, storage: str | None, trials: int, *more: str) -> subprocess.Popen[str]:
    line = [
        sys.executable, "-m", "plait", "merge", *told(place, "validation:validation"), "--method", "ties",
        "--search", str(trials), "-o", str(out), *([] if storage is None else ["--storage", storage]), *more,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)


def trials_in(storage: str) -> list[Any]:
    studies = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=studies[0].study_name, storage=storage).trials if studies else []


def test_two_processes_share_a_study(place: Path, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    both = [started(place, tmp_path / name, storage, 10) for name in ("one", "two")]
    ends = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    owners = {trial.user_attrs["owner"] for trial in trials_in(storage)}
    assert len(owners) == 2
    one, two = (record(tmp_path / name)["search"] for name in ("one", "two"))
    assert one == two
    assert one["trials"] == 10
    assert weights_file(tmp_path / "one") == weights_file(tmp_path / "two")
    parameters = [tuple(trial.params.items()) for trial in trials_in(storage)]
    assert len(set(parameters)) == len(parameters)


def test_a_killed_search_goes_on(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    storage = f"sqlite:///{tmp_path / '.m.training' / 'search.db'}"
    process = started(place, out, None, 60, "--search-batch", "2")
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / ".m.training" / "search.db").exists():
            try:
                done = [t for t in trials_in(storage) if t.state.is_finished()]
            except Exception:  # the tables are being made
                done = []
            if len(done) >= 4:
                break
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = [t for t in trials_in(storage) if t.state.is_finished()]
    again = started(place, out, None, len(before) + 4, "--resume", "--search-batch", "2")
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    found = record(out)["search"]
    assert found["trials"] == len(before) + 4
    assert found["best"]["score"] >= max((t.value for t in before if t.value is not None), default=0.0)
    assert invoke(
        ["merge", *told(place, "validation:validation"), "--method", "ties", "--search", str(len(before) + 4),
         "--search-batch", "2", "-o", str(out), "--resume"]
    ) == 0  # fmt: skip
