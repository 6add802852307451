"""Outputs lie apart from what they are made from: one rule for every command that writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.checkpoints.places import check_apart
from plait.errors import OutputError
from tests.conftest import write_rows
from tests.models import save, texts, tiny

ROWS: list[dict[str, object]] = [{"text": text, "label": i % 2} for i, text in enumerate(texts(8))]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model, a folder of data, and links to both."""
    save(tiny("bert", "sequence"), tmp_path / "models" / "a")
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", ROWS)
    for folder in ("models", "data"):  # as if a model lay there, which may be replaced
        (tmp_path / folder / "config.json").write_text("{}")
    for folder in ("models/a/inside", "data/inside", "data/in"):
        (tmp_path / folder).mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "models")
    (tmp_path / "linked-data").symlink_to(tmp_path / "data")
    return tmp_path


def merged(model: Any, data: Any, out: Any) -> Any:
    return plait.merge({"a": model, "b": model}, data={"a": data, "b": data}, out=out, overwrite=True)


def evaluated(model: Any, data: Any, out: Any) -> Any:
    return plait.merge({"a": model, "b": model}, method="average", evaluate={"a": data}, out=out, overwrite=True)


def amalgamated(model: Any, data: Any, out: Any) -> Any:
    return plait.amalgamate({"a": model}, texts=data, student=model, out=out, overwrite=True)


def kept_beside(model: Any, data: Any, out: Any) -> Any:
    unlike = Path(out).parent.parent / "student"
    return plait.amalgamate({"a": model}, texts=data, student=model, store=out, out=unlike)


def scored(model: Any, data: Any, out: Any) -> Any:
    return plait.posteriors({"a": model}, texts=data, out=out, overwrite=True)


def ensembled(model: Any, data: Any, out: Any) -> Any:
    return plait.ensemble(model, data=data, out=out, overwrite=True)


def tuned(model: Any, data: Any, out: Any) -> Any:
    return plait.finetune(model, data, out, overwrite=True)


def estimated(model: Any, data: Any, out: Any) -> Any:
    return plait.estimate(model, data, out=Path(out) / "a.safetensors", overwrite=True)


JOBS = [merged, evaluated, amalgamated, kept_beside, scored, ensembled, tuned]


@pytest.mark.parametrize("job", [*JOBS, estimated])
@pytest.mark.parametrize("out", ["models/a", "models/a/inside", "linked/a", "data", "data/inside", "linked-data/in"])
def test_no_job_writes_into_what_it_reads(job: Callable[..., Any], out: str, place: Path) -> None:
    before = sorted(place.rglob("*"))
    data = "data/train.jsonl@train" if out == "data" and job is not estimated else "linked-data@train"
    with pytest.raises(OutputError, match="overlap"):
        job(place / "models" / "a", f"{place / data}", place / out)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("out", ["models", "linked"])
def test_no_job_replaces_what_holds_its_input(job: Callable[..., Any], out: str, place: Path) -> None:
    with pytest.raises(OutputError, match="overlap"):
        job(place / "models" / "a", place / "data", place / out)


def test_an_export_is_apart_from_what_it_is_made_from(place: Path) -> None:
    made = plait.merge({"a": place / "models" / "a"}, method="average", out=place / "merged")
    (place / "shown").symlink_to(made.path)
    for out in (place / "merged", place / "merged" / "tasks" / "x", place / "shown" / "x"):
        with pytest.raises(OutputError, match="overlap"):
            plait.export(made, out, overwrite=True)


def test_what_is_said(place: Path) -> None:
    with pytest.raises(OutputError, match=r"output .*models and .*models/a, which is read, overlap \(the output holds"):
        check_apart(place / "models", None, "owner/name", ["a", "b"], {"path": place / "models" / "a"})
    with pytest.raises(OutputError, match=r"x, which is kept, overlap \(they are the same\)"):
        check_apart(place / "x", place / "x", kept=True)
    with pytest.raises(OutputError, match="the output lies inside it"):
        check_apart(place / "data" / "x", f"{place / 'data'}@train")


def test_what_is_apart_may_be_written(place: Path) -> None:
    check_apart(place / "out", place / "models", place / "data", place / "none", "owner/name@main", "a" * 5000)
    check_apart(place / "models" / "b", place / "models" / "a")
    check_apart(place / "data" / "out", place / "data" / "train.jsonl")
