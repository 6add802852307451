"""Trackers are told each candidate's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import transformers.integrations

from plait.comparison.tracking import numbers_of, report_to

ROW = {
    "id": "merge/ties", "status": "done", "mean_relative": 0.9, "bytes": 4, "parameters": None, "seconds": 2.5,
    "latency": {"1": 0.5}, "scores": {"mood": {"value": 0.75}},
}  # fmt: skip


class Noting:
    told: ClassVar[list[tuple[int, dict[str, float]]]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.told.clear()

    def on_log(self, _: Any, state: Any, __: Any, logs: dict[str, float]) -> None:
        self.told.append((state.global_step, logs))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.told.append((-1, {}))


def test_numbers_have_the_name_of_the_candidate() -> None:
    assert numbers_of(ROW) == {
        "merge/ties/mean_relative": 0.9, "merge/ties/bytes": 4.0, "merge/ties/seconds": 2.5,
        "merge/ties/seconds_per_text_1": 0.5, "merge/ties/mood": 0.75,
    }  # fmt: skip


def test_a_step_for_each_candidate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        transformers.integrations, "get_reporting_integration_callbacks", lambda names: asked.append(names) or [Noting]
    )
    found = {"candidates": [ROW, {**ROW, "id": "merge/slerp", "status": "skipped"}]}
    report_to("one, two", found, tmp_path)
    assert asked == [["one", "two"]]
    assert Noting.told == [(1, numbers_of(ROW)), (-1, {})]
    report_to("none", found, tmp_path)
    assert len(asked) == 1
