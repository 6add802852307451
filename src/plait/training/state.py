"""The state of a training run on disk, so that a killed one can resume; processes that train together."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError

from plait.boundary import load_json, read_text, reading
from plait.checkpoints.output import one_writer, write_whole
from plait.checkpoints.sealed import SEAL, sealed_facts
from plait.encoders.modes import FULL
from plait.errors import OutputError, PlaitError, first_line, listed

logger = logging.getLogger("plait")
RECORD = "plait.json"
"""What every output says of itself, and of the job that made it."""
STUDY = "search.db"
"""The trials of a search, from which it can be gone on as well."""


@contextmanager
def training_state(out: Path, *, keep: bool, resume: bool) -> Iterator[Path]:
    """Yields the folder of the training's state, empty unless it is resumed; nobody else trains for `out` meanwhile.

    It stays only where it is to be kept and holds weights to resume from, or where the run is interrupted.
    """
    with one_writer(out) if first() else nullcontext():
        yield from _state(state_folder(out), keep=keep, resume=resume)


def state_folder(out: Path) -> Path:
    """Returns where the state of a training lies."""
    return out.parent / f".{out.name}.training"


def _state(folder: Path, *, keep: bool, resume: bool) -> Iterator[Path]:
    if not resume and first():
        if _has_weights(folder):
            logger.warning(
                "%s: the state of a run that was stopped is discarded; --resume would have gone on from it",
                folder,
            )
        shutil.rmtree(folder, ignore_errors=True)
    interrupted = False
    try:
        yield folder
    except BaseException as error:
        interrupted = not isinstance(error, Exception)
        raise
    finally:
        if first() and not (keep and (interrupted or _has_weights(folder))):
            shutil.rmtree(folder, ignore_errors=True)


def _has_weights(folder: Path) -> bool:
    return (folder / STUDY).is_file() or any(folder.rglob("*.safetensors"))


def check_state(folder: Path, run: Mapping[str, Any]) -> None:
    """Notes what is trained beside its state; refuses to go on from the state of something else.

    Raises:
        PlaitError: the state is of another run, or what it is of cannot be read.
    """
    if not first():
        return
    record = folder / "run.json"
    before = dict(run)
    if record.is_file():
        before = load_json(record, dict, error=PlaitError, advice="start again without resume")
    if changed := [
        f"{name} was {before.get(name)}, is {run.get(name)}"
        for name in dict.fromkeys((*run, *before))
        if before.get(name) != run.get(name)
    ]:
        raise PlaitError(
            f"{folder} was left by another run ({listed(changed)}); repeat its options, or start again without resume"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(record, (json.dumps(dict(run)) + "\n").encode())


def job_key(run: Mapping[str, Any]) -> str:
    """Returns a hash of what a run must repeat to be the same job; an output records it."""
    return xxhash.xxh3_128_hexdigest(json.dumps(dict(run), sort_keys=True).encode())


def finished_job(out: str | Path) -> str | None:
    """Returns the key of the job whose whole result lies at a place; None where there is none."""
    try:
        key = load_json(Path(out) / RECORD, dict).get("job")
    except PlaitError:
        return None
    return key if isinstance(key, str) and key else None


def is_finished(out: str | Path, run: Mapping[str, Any]) -> bool:
    """Says whether the result of a job is there already, of which it then tells; what it was made from is removed."""
    if finished_job(out) != job_key(run):
        return False
    logger.info("%s is finished: there is nothing to resume", out)
    if first():
        shutil.rmtree(state_folder(Path(os.path.realpath(out))), ignore_errors=True)
    return True


def last_state(folder: Path) -> str | None:
    """Returns the last state that was saved whole: a run may have been killed, or the disk full, while it was saved."""
    found = next((str(place) for place in reversed(_states(folder)) if _is_whole(place)), None)
    logger.info("resuming from %s", found) if found else logger.info("nothing to resume in %s", folder)
    return found


def forget(folder: Path, names: Collection[str]) -> None:
    """Removes all saved states but some."""
    for place in _states(folder):
        if place.name not in names:
            # Without its seal it is no state any more, however far the rest comes.
            (place / SEAL).unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)


def _states(folder: Path) -> list[Path]:
    """Returns the saved states of a training, the last one last."""
    numbers = {p: p.name.removeprefix("checkpoint-") for p in folder.glob("checkpoint-*")}
    return sorted((p for p, number in numbers.items() if number.isdecimal()), key=lambda p: int(numbers[p]))


def _is_whole(state: Path) -> bool:
    """Says whether a state, and the best one that it speaks of, are what was saved; warns of damage."""
    try:
        sealed_facts(state)
        if best := trainer_state(state).get("best_model_checkpoint"):
            if Path(best).parent.resolve() != state.parent.resolve():
                raise ValueError(f"its best epoch lies at {best}: the folder was moved")
            if Path(best).name != state.name:
                sealed_facts(Path(best))
    except (OSError, ValueError, PlaitError) as error:
        if state.is_dir() and not (state / SEAL).exists():
            return False  # a run was stopped while it was saved: nothing is wrong with that
        logger.warning("%s cannot be gone on from (%s): an earlier state is taken, or none", state, first_line(error))
        return False
    return True


def trainer_state(state: Path) -> dict[str, Any]:
    """Returns what the Trainer wrote of a saved state; unlike JSON, it may hold NaN.

    Raises:
        PlaitError: it is damaged.
    """
    file = state / "trainer_state.json"
    with reading(file, "is damaged", error=PlaitError):
        return dict(json.loads(read_text(file, error=PlaitError)))


def check_accelerate() -> None:
    """Raises `PlaitError` where the library that the Trainer stands on is missing."""
    from importlib.util import find_spec

    if find_spec("accelerate") is None:
        raise PlaitError("training needs accelerate, which is not installed; run: pip install accelerate")


@contextmanager
def full_disk(out: Path) -> Iterator[None]:
    """Turns what a full disk makes of saving inside into `OutputError`, whichever library notices it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{out}: cannot be written: {first_line(error)}") from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in FULL):
            raise
        raise OutputError(f"{out}: cannot be written: no space is left on the disk") from error


def processes() -> int:
    """Returns how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Says whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def together() -> None:
    """Returns when all processes have come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
