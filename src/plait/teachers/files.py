"""Shards as files: written whole or not at all, checked when they are read."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from plait.boundary import parse_json, reading, validated
from plait.checkpoints.output import write_whole
from plait.checkpoints.writer import check_space
from plait.errors import DataError, OutputError, listed
from plait.tensors import checksum

METADATA = "plait"
PARTIAL = ".partial"


def shard_name(number: int) -> str:
    """Returns the file name of a shard."""
    return f"{number:05d}.safetensors"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name that becomes its own when all is there.

    Raises:
        OutputError: no space left, or not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise OutputError(_complaint(path, error)) from None


def _complaint(path: Path, error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"no space left for {path}: make room and run again, finished shards are kept"
    return f"cannot write {path}: {error.strerror}"


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as indented JSON."""
    write_bytes(path, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def write_shard(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes tensors with what they were made from, and their checksum."""
    whole = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    record = {**facts, "checksum": checksum(whole)}
    write_bytes(path, save(whole, {METADATA: json.dumps(record, sort_keys=True)}))


class _Facts(BaseModel):
    """What a shard says of itself, as far as all kinds of shards do."""

    model_config = ConfigDict(extra="allow")

    texts: str | None = None
    teacher: str | None = None
    checksum: str | None = None


def read_facts(path: Path) -> dict[str, Any]:
    """Returns what a shard was made from; only its header is read, which shows a truncated file."""
    return _read(path, tensors=False)[1]


def read_shard(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors of a shard and what they were made from.

    Raises:
        DataError: missing, truncated or changed since it was written.
    """
    tensors, facts = _read(path, tensors=True)
    if facts.get("checksum") != checksum(tensors):
        raise _damaged(path, "its content is not what was written")
    return tensors, facts


def _read(path: Path, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: this shard is missing; score the texts again, and it is computed anew")
    advice = "delete it, and it is scored again"
    what = "truncated or corrupt shard"
    with reading(path, what, error=DataError, advice=advice), safe_open(path, framework="pt") as file:
        text = (file.metadata() or {})[METADATA]
        found = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    content = parse_json(text, path, error=DataError, advice=advice)
    return found, validated(_Facts, content, path, error=DataError, advice=advice).model_dump(exclude_unset=True)


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path}: truncated or corrupt shard ({why}); delete it, and it is scored again")


def clear_partial(folder: Path) -> None:
    """Removes what a killed run was writing."""
    for path in folder.rglob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def check_place(folder: Path, marker: str) -> None:
    """Raises `OutputError` when a folder holds something else than a store; `marker` is the file that tells one."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file (expected a folder to write to)")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise OutputError(f"{folder} is not empty and holds no posterior store (choose another folder)")
    links = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink()]
    if links:
        raise OutputError(f"{folder}: {listed(sorted(links), 5)} in the store links elsewhere; put what it names there")


def size_of(folder: Path) -> int:
    """Returns the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_room(folder: Path, size: int) -> None:
    """Raises `OutputError` when the disk has not `size` bytes left; the folder need not exist yet."""
    check_space(next(place for place in (folder, *folder.absolute().parents) if place.is_dir()), size)
