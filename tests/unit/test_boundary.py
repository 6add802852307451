"""JSON of ours comes in by one door: a size, a kind, a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait import boundary
from plait.boundary import load_json
from plait.checkpoints.sealed import SEAL, sealed_facts
from plait.errors import DataError, SourceError
from plait.reports.record import kind_of
from plait.training.state import finished_job, last_state, trainer_state


def test_an_object_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": [1, 2.5]}')
    assert load_json(file, dict) == {"a": [1, 2.5]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", r"is damaged \(it holds a list, expected a dict\)"),
        ('{"a": 1', "is damaged"),
        ('{"a": NaN}', "NaN is not a number that JSON knows"),
        ('{"a": 1, "a": 2}', "'a' given twice"),
        ("[" * 100_000, "is damaged"),
        ('{"a": "' + "x" * 100 + '"}', "has 109 bytes, expected at most 64"),
    ],
)
def test_what_is_no_object_of_ours_is_one_line(
    tmp_path: Path, content: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    if "bytes" in said:
        monkeypatch.setattr(boundary.read_text, "__kwdefaults__", {"error": SourceError, "largest": 64})
    with pytest.raises(DataError, match=said) as caught:
        load_json(file, dict, error=DataError, advice="start again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"job": 7}'])
def test_a_record_that_cannot_be_read_is_no_finished_job(tmp_path: Path, content: str) -> None:
    (tmp_path / "plait.json").write_text(content)
    assert finished_job(tmp_path) is None


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"record": 1, "checksum": ""}'])
def test_a_seal_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / SEAL).write_text(content)
    with pytest.raises(ValueError, match=SEAL):
        sealed_facts(tmp_path)


def test_a_trainer_may_write_nan(tmp_path: Path) -> None:
    state = tmp_path / "checkpoint-1"
    state.mkdir()
    (state / "trainer_state.json").write_text('{"epoch": 1.0, "log_history": [{"loss": NaN}]}')
    assert trainer_state(state)["epoch"] == 1.0
    assert last_state(tmp_path) is None  # it has no seal


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000])
def test_a_configuration_that_cannot_be_read_belongs_to_some_checkpoint(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert kind_of(tmp_path) == "checkpoint"
