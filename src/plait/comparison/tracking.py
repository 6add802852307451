"""The answer told to the trackers that transformers knows; apart because only it makes their callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NUMBERS = ("mean_relative", "bytes", "parameters", "seconds")


def report_to(trackers: str, found: Mapping[str, Any], folder: Path) -> None:
    """Sends each candidate's numbers to trackers, one step a candidate, best first as in the table.

    Args:
        trackers: as transformers calls them: `tensorboard`, `mlflow`, `wandb`, …, several by commas, `all` or `none`.
        found: the answer.
        folder: where trackers write that write files.
    """
    if trackers == "none":
        return
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    names = trackers if trackers == "all" else [name.strip() for name in trackers.split(",")]
    rows = [row for row in found["candidates"] if row["status"] == "done"]
    arguments = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True)
    state, control = TrainerState(), TrainerControl()
    for make in get_reporting_integration_callbacks(names):
        callback = make()
        callback.on_train_begin(arguments, state, control, model=None)
        for step, row in enumerate(rows, 1):
            state.global_step = step
            callback.on_log(arguments, state, control, logs=numbers_of(row))
        callback.on_train_end(arguments, state, control, model=None)


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns a candidate's numbers by name: `merge/ties/mean_relative`, `merge/ties/sst2`."""
    found = {name: row[name] for name in NUMBERS}
    found |= {f"seconds_per_text_{at}": value for at, value in row["latency"].items()}
    found |= {task: score["value"] for task, score in row["scores"].items()}
    return {f"{row['id']}/{name}": float(value) for name, value in found.items() if value is not None}
