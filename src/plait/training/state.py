"""What a training run keeps beside its output so that a killed one can go on, and the seeds it sets."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError

from plait.checkpoints.files import first_line
from plait.errors import OutputError, PlaitError, listed
from plait.training.processes import first

logger = logging.getLogger("plait")


@contextmanager
def training_state(out: Path, *, keep: bool, resume: bool) -> Iterator[Path]:
    """Yields the folder of the training's state, empty unless it is resumed.

    It stays only where it is to be kept and holds weights to resume from.
    """
    folder = out.parent / f".{out.name}.training"
    if not resume and first():
        if _has_weights(folder):
            logger.warning(
                "%s: the state of a run that was stopped is discarded; --resume would have gone on from it",
                folder,
            )
        shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        if first() and not (keep and _has_weights(folder)):
            shutil.rmtree(folder, ignore_errors=True)


def _has_weights(folder: Path) -> bool:
    return any(folder.rglob("*.safetensors"))


def check_state(folder: Path, run: Mapping[str, Any]) -> None:
    """Notes what is trained beside its state; refuses to go on from the state of something else.

    Raises:
        PlaitError: the state is of another run, or what it is of cannot be read.
    """
    if not first():
        return
    record = folder / "run.json"
    try:
        found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else dict(run)
    except ValueError as error:
        raise PlaitError(f"{record}: is damaged ({error}); start again without resume") from error
    if changed := [
        f"{name} was {found.get(name)}, is {run.get(name)}"
        for name in dict.fromkeys((*run, *found))
        if found.get(name) != run.get(name)
    ]:
        raise PlaitError(
            f"{folder} was left by another run ({listed(changed)}); repeat its options, or start again without resume"
        )
    folder.mkdir(parents=True, exist_ok=True)
    fresh = record.with_suffix(".new")  # a record that is there is whole, whenever the run is killed
    fresh.write_text(json.dumps(dict(run)) + "\n", encoding="utf-8")
    fresh.replace(record)


def last_state(folder: Path) -> str | None:
    """Returns the last state that was saved whole: a run may have been killed, or the disk full, while it was saved."""
    states = sorted(folder.glob("checkpoint-*"), key=lambda place: int(place.name.rpartition("-")[2]))
    found = next((str(place) for place in reversed(states) if _is_whole(place)), None)
    logger.info("resuming from %s", found) if found else logger.info("nothing to resume in %s", folder)
    return found


def _is_whole(state: Path) -> bool:
    """Says whether the Trainer came to the end of saving a state: its own record is the last file."""
    try:
        json.loads((state / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def check_accelerate() -> None:
    """Raises `PlaitError` where the library that the Trainer stands on is missing."""
    from importlib.util import find_spec

    if find_spec("accelerate") is None:
        raise PlaitError("training needs accelerate, which is not installed; run: pip install accelerate")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds every generator inside and gives the caller's states back afterwards."""
    # transformers.set_seed seeds numpy's global generator too, so that one is restored as well.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            transformers.set_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


FULL = ("No space left", "PytorchStreamWriter", "unexpected pos")
"""How torch says that a disk is full."""


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
        raise OutputError(f"{out}: cannot be written: {first_line(error)}") from error
