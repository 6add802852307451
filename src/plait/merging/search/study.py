"""The study: trials of a search in a database that several processes may share, kept by Optuna."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plait.errors import PlaitError, RecipeError, first_line
from plait.merging.search.space import Axis
from plait.recipe import MergeRecipe
from plait.training.state import STUDY

logger = logging.getLogger("plait")

BEAT, SILENCE = 10, 60
"""Seconds between two signs of life of a trial, and without one after which its process counts as dead."""
PATIENCE = 60.0
"""Seconds that SQLite waits for another process to finish writing."""
REASON, OWNER, SCORES = "reason", "owner", "scores"
"""Attributes of a trial: why it failed, whose it is, and its score on each task."""
STARTUP = 10
"""Trials before suggestions follow earlier ones, and before any is stopped early."""


def check_search(recipe: MergeRecipe, validation: Mapping[str, Any]) -> None:
    """Raises `PlaitError` where the library is missing, or something is said of a search that is not asked for."""
    said = {"storage": recipe.storage, "validation": recipe.validation or validation}
    if recipe.search is None and (idle := [name for name, value in said.items() if value]):
        raise RecipeError(f"--{idle[0]} is of use to --search alone: give --search TRIALS, or leave it out")
    if recipe.search and find_spec("optuna") is None:
        raise PlaitError("--search needs optuna, which is not installed; run: pip install 'plait[search]'")


@dataclass(frozen=True)
class Study:
    """A study with the axes that it searches; several processes may hold the same one."""

    optuna: Any
    storage: Any
    axes: tuple[Axis, ...]
    seed: int

    def ask(self) -> Any:
        """Returns a new trial with its values suggested.

        The sampler is seeded by the trial's number: two processes never draw the same, and a search that goes on
        suggests what it would have suggested at once.
        """
        import optuna

        with quiet():
            trial = self.optuna.ask()
            self.optuna.sampler = optuna.samplers.TPESampler(
                seed=self.seed * 1_000_003 + trial.number, n_startup_trials=STARTUP, multivariate=False,
                constant_liar=True,
            )  # fmt: skip
            for axis in self.axes:
                trial.suggest_float(axis.name, axis.low, axis.high, log=axis.logarithmic)
            trial.set_user_attr(OWNER, owner())
            self.storage.record_heartbeat(trial._trial_id)
        return trial

    def values(self, trial: Any) -> dict[str, float]:
        """Returns what a trial tries, by axis."""
        return {axis.name: axis.rounded(trial.params[axis.name]) for axis in self.axes}

    def tell(self, trial: Any, value: float) -> None:
        """Ends a trial with its score."""
        with quiet():
            self.optuna.tell(trial, value, skip_if_finished=True)

    def prune(self, trial: Any) -> None:
        """Ends a trial that is worse than most at the same task."""
        import optuna

        with quiet():
            self.optuna.tell(trial, state=optuna.trial.TrialState.PRUNED, skip_if_finished=True)

    def fail(self, trial: Any, reason: str | None) -> None:
        """Ends a trial without a score; without a reason it is made up for by another one."""
        import optuna

        with quiet():
            if reason is not None:
                trial.set_user_attr(REASON, reason)
            self.optuna.tell(trial, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def trials(self) -> list[Any]:
        """Returns all trials in order, after those of dead processes have been given up."""
        import optuna

        with quiet():
            optuna.storages.fail_stale_trials(self.optuna)
            found = self.optuna.get_trials(deepcopy=False)
            for trial in found:
                if trial.state.name == "RUNNING" and is_dead(trial.user_attrs.get(OWNER, "")):
                    self.optuna.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
            return list(self.optuna.get_trials(deepcopy=False))

    @contextmanager
    def alive(self, trials: Sequence[Any]) -> Iterator[None]:
        """Gives signs of life of running trials while inside."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT):
                for trial in trials:
                    self.storage.record_heartbeat(trial._trial_id)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def counted(trials: Sequence[Any]) -> list[Any]:
    """Returns the trials that have come to an end of their own: scored, stopped early, or failed for a reason."""
    return [t for t in trials if t.state.name in {"COMPLETE", "PRUNED"} or t.user_attrs.get(REASON)]


def settled(trials: Sequence[Any], wanted: int) -> list[Any] | None:
    """Returns the first `wanted` trials that count, None while others before them are still running.

    So all processes that share a study agree on the best, even where one has begun a trial too many.
    """
    done = counted(trials)[:wanted]
    if len(done) < wanted:
        return None
    open_before = any(t.state.name == "RUNNING" and t.number < done[-1].number for t in trials)
    return None if open_before else done


def open_study(url: str, name: str, axes: tuple[Axis, ...], seed: int) -> Study:
    """Returns the study of this name in a database, made where it is not there yet; its first trial is the defaults.

    Raises:
        RecipeError: no such database, or it does not let us in.
    """
    import optuna

    with quiet():
        storage = open_storage(url)
        pruner = optuna.pruners.PercentilePruner(75.0, n_startup_trials=STARTUP)
        told: dict[str, Any] = {"storage": storage, "study_name": name, "pruner": pruner}
        try:
            found = optuna.create_study(direction="maximize", **told)
            found.enqueue_trial({axis.name: axis.start for axis in axes})
        except optuna.exceptions.DuplicatedStudyError:
            found = optuna.load_study(**told)
    return Study(found, storage, axes, seed)


def open_storage(url: str) -> Any:
    """Returns the database that a URL names.

    Raises:
        RecipeError: it names none, its driver is missing, or it cannot be opened.
    """
    import optuna

    if not re.match(r"[a-z][a-z0-9+]*://", url):
        raise RecipeError(
            f"storage {url!r} is no URL; expected one such as sqlite:///search.db or postgresql://user@host/database"
        )
    arguments = {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        return optuna.storages.RDBStorage(
            url, engine_kwargs=arguments, heartbeat_interval=BEAT, grace_period=SILENCE
        )
    except Exception as problem:  # whatever a driver raises when it cannot connect
        raise RecipeError(f"storage {shown(url)} cannot be opened: {_told(problem, url)}") from problem


def _told(problem: Exception, url: str) -> str:
    """Returns what a driver said, in a line, without the password."""
    chain: list[BaseException] = [problem]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 8:
        chain.append(inner)
    missing = next((e for e in chain if isinstance(e, ModuleNotFoundError)), None)
    if missing is not None:
        driver = missing.name or "its driver"
        more = ", or name another driver: postgresql+psycopg://…" if driver.startswith("psycopg2") else ""
        return f"{driver} is not installed; run: pip install {driver.replace('psycopg2', 'psycopg2-binary')}{more}"
    said = first_line(chain[-1])
    secret = re.search(r"://[^/@]*:([^/@]+)@", url)
    return said.replace(secret[1], "…") if secret else said


def shown(url: str) -> str:
    """Returns a URL without its password."""
    return re.sub(r"(://[^/@:]*):[^/@]+@", r"\1:…@", url)


def file_url(folder: Path) -> str:
    """Returns the URL of the database of a search without `storage`, in the folder of the training's state."""
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder.resolve() / STUDY}"


def owner() -> str:
    """Returns who runs a trial: machine and process."""
    return f"{machine()} {os.getpid()}"


def machine() -> str:
    """Returns a name for all that see the same process numbers: containers on one machine may share its name."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return f"{socket.gethostname()}/{space}".replace(" ", "-")


def is_dead(who: str) -> bool:
    """Says whether a trial's process was one of this machine and has gone; of others only their silence tells."""
    host, _, number = who.partition(" ")
    if host != machine() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Optuna from writing to the terminal, and from warning of what is done here on purpose."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def wait_for_others(seconds: float = 0.5) -> None:
    """Waits a moment while another process finishes its trials."""
    time.sleep(seconds)


def summary(done: Sequence[Any], best: Any, values: Mapping[str, float]) -> dict[str, Any]:
    """Returns what a record says of finished trials: counts, the best, and the defaults' score."""
    states = [t.state.name for t in done]
    first = next((t for t in done if t.number == 0 and t.state.name == "COMPLETE"), None)
    return {
        "trials": len(done),
        "complete": states.count("COMPLETE"),
        "pruned": states.count("PRUNED"),
        "failed": states.count("FAIL"),
        "best": {"trial": best.number, "score": best.value, "values": dict(values), "tasks": best.user_attrs[SCORES]},
        "defaults": None if first is None else first.value,
    }
