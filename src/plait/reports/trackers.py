"""A comparison's table and figures for the trackers that transformers knows, through its own integrations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.errors import one_line
from plait.reports.comparison import Comparison, checked
from plait.reports.words import between, duration, megabytes, share

logger = logging.getLogger("plait")
HEADER = ("candidate", "mean relative score", "95 % interval", "on disk", "per text", "to make")


def track(comparison: Mapping[str, Any], report_to: str | Sequence[Any], folder: str | Path = ".") -> None:
    """Sends a comparison's scores, its table and its figures to trackers; what one of them refuses is a warning.

    All of them get every number, as `<candidate>/<what>`. TensorBoard, MLflow and Weights & Biases get the table and
    the figures too.

    Args:
        comparison: what `comparison.json` holds.
        report_to: what `report_to` of transformers takes (`tensorboard`, `mlflow`, `wandb`, …, several by commas,
            `all`, `none`), or a list of names and callbacks.
        folder: where the comparison lies, with `figures/`; trackers that keep files keep them there.

    Raises:
        ValueError: transformers does not know a tracker.
    """
    found, figures = checked(comparison), sorted((Path(folder) / "figures").glob("*.png"))
    for one in callbacks(report_to):
        try:
            _tell(one, found, figures, Path(folder))
        except (
            Exception
        ) as problem:  # trackers raise what they please, and the comparison is there all the same
            logger.warning("%s did not take the comparison: %s", type(one).__name__, one_line(problem))


def callbacks(report_to: str | Sequence[Any]) -> list[Any]:
    """Returns a callback for each tracker."""
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    told = report_to.split(",") if isinstance(report_to, str) else list(report_to)
    given = [one for one in told if not isinstance(one, str)]
    listed = [one.strip() for one in told if isinstance(one, str)]
    names = listed[0] if len(listed) == 1 else listed  # transformers knows `all` and `none` alone
    return [*(kind() for kind in get_reporting_integration_callbacks(names)), *given]


def _tell(one: Any, found: Comparison, figures: Sequence[Path], folder: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), report_to="none", run_name=folder.resolve().name, use_cpu=True
    )
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    one.on_train_begin(arguments, state, control, model=None)
    one.on_log(arguments, state, control, logs=numbers(found), model=None)
    for attribute, send in SENDERS.items():
        if (tracker := getattr(one, attribute, None)) is not None:
            send(tracker, table(found), figures)
    one.on_train_end(arguments, state, control, model=None)


def numbers(found: Comparison) -> dict[str, float]:
    """Returns every number of every measured candidate by `<candidate>/<what>`."""
    told: dict[str, float | None] = {}
    for one in found.done:
        told |= {
            f"{one.id}/mean_relative": one.mean_relative,
            f"{one.id}/worst": one.worst.relative if one.worst else None,
            f"{one.id}/megabytes": None if one.bytes is None else one.bytes / 1e6,
            f"{one.id}/seconds_to_make": one.seconds,
            **{f"{one.id}/latency_{batch}": value for batch, value in one.latency.items()},
            **{f"{one.id}/{task}": score.value for task, score in one.scores.items()},
        }
    return {name: float(value) for name, value in told.items() if value is not None}


def table(found: Comparison) -> list[tuple[str, ...]]:
    """Returns the rows of the table, the header first."""
    rows = [
        (one.id, share(one.mean_relative), between(*one.interval, shares=True) if one.interval else "",
         megabytes(one.bytes), duration(one.latency.get("1")), duration(one.seconds))
        for one in found.done
    ]  # fmt: skip
    return [HEADER, *rows]


def markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """Returns rows as a Markdown table."""
    from plait.reports.cards import table as drawn

    return drawn(rows[0], rows[1:])


def to_tensorboard(writer: Any, rows: Sequence[tuple[str, ...]], figures: Sequence[Path]) -> None:
    """Sends the table as text and the figures as images."""
    from matplotlib.image import imread

    writer.add_text("comparison", markdown(rows))
    for figure in figures:
        writer.add_image(f"figures/{figure.stem}", imread(figure)[..., :3], dataformats="HWC")


def to_mlflow(module: Any, rows: Sequence[tuple[str, ...]], figures: Sequence[Path]) -> None:
    """Sends the table and the figures as artifacts of the run."""
    module.log_text(markdown(rows), "comparison.md")
    for figure in figures:
        module.log_artifact(str(figure), "figures")


def to_wandb(module: Any, rows: Sequence[tuple[str, ...]], figures: Sequence[Path]) -> None:
    """Sends the table and the figures as media of the run."""
    module.log({"comparison": module.Table(columns=list(rows[0]), data=[list(row) for row in rows[1:]])})
    module.log({f"figures/{figure.stem}": module.Image(str(figure)) for figure in figures})


SENDERS: Mapping[str, Callable[[Any, Sequence[tuple[str, ...]], Sequence[Path]], None]] = {
    "tb_writer": to_tensorboard,
    "_ml_flow": to_mlflow,
    "_wandb": to_wandb,
}
"""Where transformers' callbacks keep their tracker, and who can send more than numbers to it."""
