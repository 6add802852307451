"""Writing checkpoints: safetensors files whose tensors arrive in pieces, in a folder that appears only when whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.boundary import byte_count
from plait.checkpoints.output import new_folder, one_writer, put_in_place, remove, umask
from plait.errors import OutputError, RecipeError

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
MODEL_FILES = ("plait.json", "config.json", "adapter_config.json")
"""What a folder must hold one of to be replaced."""
SPARE = 16 * 2**20
"""Bytes left free on the disk beside what is written."""


@dataclass(frozen=True)
class Slot:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Returns its bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Region:
    """Where a slot's bytes go."""

    descriptor: int
    start: int
    size: int


def parse_size(text: int | str) -> int:
    """Returns a number of bytes from a number or from words such as `5GB`, `200 MB`, `1GiB`.

    Raises:
        RecipeError: not a size.
    """
    size = byte_count(text)
    if not size:
        raise RecipeError(
            f"max_shard_size {text!r} is not a size (expected bytes, or words such as 5GB or 200MB)"
        )
    return size


def split(slots: Sequence[Slot], limit: int) -> list[list[Slot]]:
    """Returns the slots in shards of at most `limit` bytes, in order; a larger tensor has a shard of its own.

    `huggingface_hub.split_state_dict_into_shards_factory` gives the same but where a tensor is larger than `limit`:
    there it goes on filling the shard before it, and shards are no longer runs of the order in which tensors are made.

    Within a shard wide dtypes come first, so that every tensor lies at a multiple of its item size.
    """
    shards: list[list[Slot]] = []
    room = -1
    for slot in slots:
        if slot.size > room:
            shards.append([])
            room = limit
        shards[-1].append(slot)
        room -= slot.size
    return [sorted(shard, key=lambda slot: -slot.dtype.itemsize) for shard in shards]


def header_bytes(slots: Sequence[Slot], metadata: Mapping[str, str]) -> bytes:
    """Returns a safetensors header for tensors that lie one after the other."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    start = 0
    for slot in slots:
        end = start + slot.size
        content[slot.name] = {
            "dtype": DTYPES[slot.dtype],
            "shape": list(slot.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class TensorWriter:
    """Open safetensors files with their headers written, waiting for the bytes of each tensor in any order.

    Use as a context manager; `put` may be called from several threads.
    """

    def __init__(
        self,
        folder: Path,
        slots: Sequence[Slot],
        *,
        stem: str = "model",
        max_shard_size: int | str = "5GB",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Creates the files.

        Raises:
            OutputError: not enough space on the disk, or it cannot be written.
        """
        self.folder = folder
        self.slots = {slot.name: slot for slot in slots}
        self.shards = split(slots, parse_size(max_shard_size)) or [[]]
        count = len(self.shards)
        self.files = tuple(
            folder
            / (f"{stem}.safetensors" if count == 1 else f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors")
            for i in range(count)
        )
        self._stem = stem
        self._regions: dict[str, Region] = {}
        self._descriptors: list[int] = []
        check_space(folder, sum(slot.size for slot in slots))
        try:
            for file, shard in zip(self.files, self.shards, strict=True):
                self._begin(file, shard, metadata or {})
        except OSError as error:
            self.close()
            raise OutputError(f"cannot write {folder}: {error.strerror}") from None

    def _begin(self, file: Path, shard: Sequence[Slot], metadata: Mapping[str, str]) -> None:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._descriptors.append(descriptor)
        head = header_bytes(shard, metadata)
        _write_all(descriptor, memoryview(head), 0)
        place = len(head)
        for slot in shard:
            self._regions[slot.name] = Region(descriptor, place, slot.size)
            place += slot.size
        os.ftruncate(descriptor, place)

    def put(self, name: str, data: memoryview, offset: int = 0) -> None:
        """Writes bytes of a tensor, `offset` bytes from its start.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        region = self._regions[name]
        if offset + data.nbytes > region.size:
            raise ValueError(f"{name}: {offset + data.nbytes} bytes do not fit into {region.size}")
        try:
            _write_all(region.descriptor, data, region.start + offset)
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror}") from None

    def put_tensor(self, name: str, tensor: Tensor) -> None:
        """Writes a whole tensor, which must have its slot's dtype and shape."""
        slot = self.slots[name]
        if tensor.dtype != slot.dtype or tuple(tensor.shape) != slot.shape:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} where {slot} was announced")
        self.put(name, bytes_of(tensor))

    def close(self) -> None:
        """Closes the files."""
        for descriptor in self._descriptors:
            with suppress(OSError):
                os.close(descriptor)
        self._descriptors.clear()

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and len(self.files) > 1:
            self._write_index()
        self.close()

    def _write_index(self) -> None:
        files = zip(self.files, self.shards, strict=True)
        places = {slot.name: file.name for file, shard in files for slot in shard}
        content = {"metadata": {"total_size": sum(s.size for s in self.slots.values())}, "weight_map": places}
        index = self.folder / f"{self._stem}.safetensors.index.json"
        index.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def bytes_of(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor, without a copy when it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _write_all(descriptor: int, data: memoryview, place: int) -> None:
    while data.nbytes:
        written = os.pwrite(descriptor, data, place)
        data, place = data[written:], place + written


def check_space(folder: Path, size: int) -> None:
    """Raises `OutputError` when the disk of `folder` has not `size` bytes left."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from None
    if free < size + SPARE:
        raise OutputError(
            f"not enough space at {folder}: {size / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        )


def save_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    stem: str = "model",
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
) -> tuple[Path, ...]:
    """Returns the files that now hold the tensors."""
    slots = [Slot(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with TensorWriter(folder, slots, stem=stem, max_shard_size=max_shard_size, metadata=metadata) as writer:
        for name, tensor in tensors.items():
            writer.put_tensor(name, tensor)
    return writer.files


@contextmanager
def atomic_folder(target: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new folder beside `target` that takes its name when the block ends, and vanishes when it fails.

    What was at `target` stays as it was until then, and for good when the block fails.

    Raises:
        OutputError: `target` exists and is not an empty folder, and `overwrite` is not set; or it is a place that
            must not be replaced; or it cannot be written.
    """
    place = Path(os.path.realpath(target))
    with writing(place, overwrite=overwrite):
        try:
            partial = new_folder(place)
        except OSError as error:
            raise OutputError(f"cannot write {place}: {error.strerror}") from None
        try:
            yield partial
            _as_any_file(partial)
            check_target(place, overwrite=overwrite)
            put_in_place(partial, place)
        except BaseException:
            remove(partial)
            raise


@contextmanager
def writing(target: str | Path, *, overwrite: bool = False) -> Iterator[None]:
    """Lets nobody else write `target` inside: for all that comes before `atomic_folder`.

    Raises:
        OutputError: as `atomic_folder`; or somebody else is writing it.
    """
    check_target(target, overwrite=overwrite)
    with one_writer(target):
        # A swap of names that was cut off has now been ended.
        check_target(target, overwrite=overwrite)
        yield


def check_target(target: str | Path, *, overwrite: bool = False) -> None:
    """Raises `OutputError` when an output may not be written to `target`: call it before any work is done."""
    place = Path(os.path.realpath(target))
    here = Path.cwd().resolve()
    if place in {here, *here.parents, *home()}:
        raise OutputError(f"{target} is the current folder or holds it (choose another output)")
    above = next(folder for folder in (place, *place.parents) if folder.exists())
    if not above.is_dir():
        raise OutputError(f"{above} is a file (expected a folder to write to)")
    if not place.exists() or not any(place.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{target} exists and is not empty (use --overwrite, or another output)")
    if (place / ".git").exists() or not any((place / name).is_file() for name in MODEL_FILES):
        raise OutputError(f"{target} holds no model, it will not be overwritten (choose another output)")


def home() -> tuple[Path, ...]:
    """Returns the user's own folder, if there is one: containers run users that no list has."""
    try:
        return (Path.home().resolve(),)
    except RuntimeError:
        return ()


def _as_any_file(folder: Path) -> None:
    """Gives a folder and all in it the rights of newly made ones: those of temporary files are their owner's alone."""
    mask = umask()
    for place in (folder, *folder.rglob("*")):
        if not place.is_symlink():
            place.chmod((0o777 if place.is_dir() else 0o666) & ~mask)
