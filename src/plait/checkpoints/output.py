"""Outputs that are whole or not there: one writer at a time, on the disk before they take their name."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from plait.errors import OutputError

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger("plait")
PARTIAL, OLD = ".partial", ".old"
"""How the names end of what is being written, and of what it replaces where the system cannot swap two names."""
LEFT = re.compile(r"\.(?P<name>.+)\.(?P<key>[a-z0-9_]{8})(?P<kind>\.partial|\.old)", re.DOTALL)
"""The names of both: that of the output between dots, then eight signs."""
HERE, EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""
UNKNOWN_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""How file systems say that they have no locks."""
_owners: dict[tuple[int, Path], int] = {}
"""By process and output, the thread that writes it."""


@contextmanager
def one_writer(target: str | Path, *, patience: float = 0.0) -> Iterator[None]:
    """Lets nobody else write an output inside; what killed runs left of it is removed first.

    The lock is a file beside the output. It goes with its process, however that ends: a file that a killed run left
    stops nobody. The same thread may come here again. Where a file system has no locks, nothing is locked or removed.

    Args:
        target: the file or folder that is written.
        patience: seconds to wait for another writer.

    Raises:
        OutputError: another process, or thread, is writing it; or nothing can be written beside it.
    """
    place = Path(os.path.realpath(target))
    key = (os.getpid(), place)
    if _owners.get(key) == threading.get_ident():
        yield
        return
    made = _make_folder(place.parent, target)
    lock = place.parent / f".{place.name}.lock"
    descriptor = _locked(lock, place, time.monotonic() + patience)
    _owners[key] = threading.get_ident()
    try:
        if descriptor is not None:
            tidy(place)
        yield
    finally:
        del _owners[key]
        with suppress(OSError):
            lock.unlink()
        if descriptor is not None:
            os.close(descriptor)
        for folder in made:
            with suppress(OSError):  # it holds something now, as it should
                folder.rmdir()


def _make_folder(folder: Path, target: str | Path) -> list[Path]:
    """Returns the folders made so that `folder` is there, the innermost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from None
    return missing


def _locked(lock: Path, place: Path, end: float) -> int | None:
    """Returns the descriptor that holds a lock; None where the file system has none."""
    while True:
        try:
            descriptor = _opened(lock)
            found = _try_lock(descriptor)
            # Whoever held it may have removed the file meanwhile: then the lock is on nothing.
            if found and _is_at(descriptor, lock):
                return _signed(descriptor)
            owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
        except OSError as error:
            raise OutputError(f"cannot write {place}: {error.strerror}") from None
        if found is None:
            return None
        if not found and time.monotonic() >= end:
            who = f"process {owner}" if owner else "another process"
            raise OutputError(f"{place} is being written by {who}: wait for it, or choose another output")
        time.sleep(0.02)


def _opened(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # left by somebody else's killed run: enough to lock, not to sign
        if not lock.exists():
            raise
        return os.open(lock, os.O_RDONLY)


def _signed(descriptor: int) -> int:
    """Returns the descriptor of a lock, in which it now says who holds it."""
    with suppress(OSError):
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _try_lock(descriptor: int) -> bool | None:
    """Says whether a file is locked now; None where there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNKNOWN_LOCK:
            return None
        raise
    return True


def _is_at(descriptor: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), place.stat())
    except FileNotFoundError:
        return False


def tidy(place: Path) -> None:
    """Ends a swap of names that was cut off, and removes what killed runs left of an output; names both.

    Only for who holds its lock: nobody else is writing there then.
    """
    left = {}
    with suppress(OSError):
        left = {p.name: m for p in place.parent.iterdir() if (m := LEFT.fullmatch(p.name)) and m["name"] == place.name}
    for found in left.values():
        fresh = place.parent / f".{place.name}.{found['key']}{PARTIAL}"
        if found["kind"] == OLD and not place.exists():
            # What replaces an output is whole before the old one is moved aside.
            (fresh if fresh.exists() else place.parent / found.string).rename(place)
            sync_folder(place.parent)
            logger.warning("%s: a run that was killed had not put it in place; it is there now", place)
    for name in left:
        path = place.parent / name
        if path.exists():
            remove(path)
            logger.info("removed %s, left by a run that was killed", path)


def remove(path: Path) -> None:
    """Removes a file or a folder with all in it, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def new_folder(place: Path) -> Path:
    """Returns a new folder beside an output, by whose name later runs know what it was to be."""
    return Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=PARTIAL, dir=place.parent))


@contextmanager
def whole_file(target: str | Path) -> Iterator[Path]:
    """Yields a path beside `target`; what is written there takes its name, on the disk for good, when the block ends.

    What was at `target` stays as it was until then, and for good when the block fails.
    """
    place = Path(os.path.realpath(target))
    handle, name = tempfile.mkstemp(prefix=f".{place.name}.", suffix=PARTIAL, dir=place.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~umask())
        sync_file(partial)
        partial.replace(place)
    except BaseException:
        remove(partial)
        raise
    sync_folder(place.parent)


def write_whole(target: str | Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all, whenever the run is killed or the power fails."""
    with whole_file(target) as partial:
        partial.write_bytes(content)


def put_in_place(partial: Path, place: Path) -> None:
    """Gives a finished folder its name: at every moment either what was there before or all that is new is there.

    Raises:
        OutputError: it cannot be done; what was there is there.
    """
    old = partial.with_suffix(OLD)
    try:
        sync_tree(partial)
        if not place.exists():
            partial.rename(place)
        elif not exchange(partial, place):
            place.rename(old)
            partial.rename(place)
    except BaseException as error:
        if old.exists() and not place.exists():
            old.rename(place)
        if isinstance(error, OSError):
            raise OutputError(f"cannot replace {place}: {error.strerror}") from None
        raise
    sync_folder(place.parent)
    remove(partial)
    remove(old)


def exchange(one: Path, other: Path) -> bool:
    """Says whether two paths have changed names in one step; systems and disks that cannot do that say no."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):  # an older C library
        return False
    return bool(rename(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE) == 0)


def sync_tree(folder: Path) -> None:
    """Returns when a folder and all in it are on the disk."""
    for place in folder.rglob("*"):
        if place.is_dir():
            sync_folder(place)
        elif not place.is_symlink():
            sync_file(place)
    sync_folder(folder)


def sync_file(path: Path) -> None:
    """Returns when the content of a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk, where the system can promise that."""
    with suppress(OSError):
        sync_file(folder)


def umask() -> int:
    """Returns which rights new files lack."""
    os.umask(mask := os.umask(0))
    return mask
