"""Tensor headers of safetensors files and of pickles: where each tensor lies; a pickle never makes objects."""

from __future__ import annotations

import json
import math
import mmap
import os
import pickle
import re
import struct
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from plait.boundary import check_plain, read_text, reading
from plait.errors import SourceError, first_line, listed
from plait.hub import PICKLE, SAFETENSORS

_HEADER_LIMIT = 100_000_000  # what the safetensors format allows
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip


Seen = Callable[[memoryview], None]
"""Takes the bytes that were read from a file, in order."""


@runtime_checkable
class Derived(Protocol):
    """A tensor that lies nowhere as it is and is computed when it is read, any piece by itself."""

    @property
    def origin(self) -> Header | None:
        """Returns the stored tensor that it changes; None where it changes none."""

    @property
    def fingerprint(self) -> str:
        """Returns a digest of all that decides it beside its origin."""

    def fill(self, target: Tensor, start: int, seen: Seen | None = None) -> None:
        """Writes the entries from `start` on into a flat float32 tensor; `seen` takes the bytes of the origin."""


@dataclass(frozen=True)
class Header:
    """Where a tensor lies: bytes `start` to `end` of `file`, row-major; -1 where it is not plain bytes.

    `key` is its name in the file where it is called otherwise. A `derived` tensor is computed, mostly from what lies
    between start and end.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int
    key: str | None = None
    derived: Derived | None = None

    @property
    def addressable(self) -> bool:
        """Whether the bytes from start to end are the tensor (not so in old or strided pickles)."""
        return self.start >= 0 and self.derived is None

    @property
    def nbytes(self) -> int:
        """Returns the tensor's size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_headers(folder: Path) -> dict[str, Header]:
    """Returns the header of every tensor of a checkpoint folder, in any format, reading no weights."""
    for name, read in ((SAFETENSORS, read_safetensors_header), (PICKLE, read_pickle_header)):
        if (folder / name).is_file():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index, Path(name).suffix, read)
    raise SourceError(
        f"{folder}: no weights found{instead(folder)}; expected {SAFETENSORS} or {PICKLE} (or shards)"
    )


def has_weights(folder: Path) -> bool:
    """Says whether a folder holds weights of a whole model in a form that is read."""
    names = [name for weights in (SAFETENSORS, PICKLE) for name in (weights, f"{weights}.index.json")]
    return any((folder / name).is_file() for name in names)


def instead(folder: Path) -> str:
    """Returns a hint where the folder holds weights in a form Plait does not read."""
    others = sorted(
        p.name for p in folder.iterdir() if p.suffix in {".h5", ".msgpack", ".onnx", ".pt", ".ckpt", ".bin"}
    )
    graph = ": ONNX has lost the weights' names, so give what it was exported from" if _onnx(folder) else ""
    return f", only {', '.join(others)}{graph}" if others else ""


def _onnx(folder: Path) -> bool:
    return any(folder.glob("*.onnx"))


def _read_shards(index: Path, suffix: str, read: Callable[[Path], dict[str, Header]]) -> dict[str, Header]:
    """Returns the headers of a sharded checkpoint after checking its index against the shards."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise SourceError(
            f"{index}: no weight_map from tensor names to shard names; download the checkpoint again"
        )
    shards = sorted(set(where.values()))
    _refuse_unsafe(index, shards, suffix)
    absent = [name for name in shards if not (index.parent / name).is_file()]
    if absent:
        raise SourceError(f"{index}: missing shards: {listed(absent)}; download or copy them too")
    headers = {name: header for shard in shards for name, header in read(index.parent / shard).items()}
    lost = sorted(set(where) - set(headers))
    if lost:
        raise SourceError(
            f"{index}: tensors that its shards do not hold: {listed(lost)}; download the checkpoint again"
        )
    return headers


def _refuse_unsafe(index: Path, shards: Iterable[str], suffix: str) -> None:
    unsafe = [
        name
        for name in shards
        if PurePosixPath(name).is_absolute()
        or PureWindowsPath(name).anchor
        or ".." in PureWindowsPath(name).parts
        or not name.endswith(suffix)
    ]
    if unsafe:
        raise SourceError(
            f"{index}: refused shard names {listed(map(repr, unsafe))}; expected {suffix} files inside it"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object a JSON file holds."""
    if not path.exists():
        raise SourceError(f"{path}: missing; expected a JSON object there")
    with reading(path, "not readable as JSON", advice="download or write it again"):
        value = json.loads(read_text(path))
        check_plain(value)
    if not isinstance(value, dict):
        raise SourceError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def read_safetensors_header(file: Path) -> dict[str, Header]:
    """Returns the header of every tensor of a safetensors file; corrupt and truncated files are refused."""
    _refuse_empty(file)
    with file.open("rb") as stream:
        first = stream.read(8)
        size = file.stat().st_size
        if first.startswith(b"version "):
            raise SourceError(f"{file}: a Git LFS pointer, not weights; run `git lfs pull` in its repository")
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise _corrupt(file, f"its header claims {length:,} bytes of a file of {size:,}")
        text = stream.read(length)
    broken = "corrupt or truncated safetensors file: its header is not JSON"
    with reading(file, broken, advice="download or save it again"):
        table = json.loads(text.decode("utf-8"))
    if not isinstance(table, dict):
        raise _corrupt(file, "its header is not a JSON object")
    metadata = table.pop("__metadata__", None)
    texts = metadata.values() if isinstance(metadata, dict) else [metadata]
    if metadata is not None and not all(isinstance(value, str) and isinstance(metadata, dict) for value in texts):
        raise _corrupt(file, "its __metadata__ are not texts")
    headers = {name: _entry(file, name, entry, 8 + length) for name, entry in table.items()}
    _check_extent(file, headers, 8 + length, size)
    return headers


def _refuse_empty(file: Path) -> None:
    if not file.stat().st_size:
        raise SourceError(f"{file}: is empty; download or save it again")


def _corrupt(file: Path, why: str) -> SourceError:
    return SourceError(f"{file}: corrupt or truncated safetensors file: {why}; download or save it again")


def _entry(file: Path, name: str, entry: Any, offset: int) -> Header:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, start, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise _corrupt(file, f"tensor {name!r} lacks a valid dtype, shape or data_offsets")
    if dtype not in _DTYPES:
        raise SourceError(f"{file}: tensor {name!r} has dtype {dtype}; expected one of {', '.join(_DTYPES)}")
    header = Header(_DTYPES[dtype], shape, file, offset + start, offset + end)
    if header.nbytes != end - start:
        raise _corrupt(file, f"tensor {name!r} of shape {list(shape)} cannot take {end - start:,} bytes")
    return header


def _check_extent(file: Path, headers: Mapping[str, Header], begin: int, size: int) -> None:
    """Raises unless the tensors fill the file from `begin` to its end without holes or overlaps."""
    at = begin
    for name, header in sorted(headers.items(), key=lambda item: (item[1].start, item[1].end)):
        if header.start != at:
            raise _corrupt(file, f"tensor {name!r} starts at byte {header.start:,}, expected {at:,}")
        at = header.end
    if at != size:
        raise _corrupt(file, f"its tensors end at byte {at:,} of {size:,}")


def read_pickle_header(file: Path) -> dict[str, Header]:
    """Returns the header of every tensor of a PyTorch file, read with `weights_only` onto the meta device."""
    return {name: _pickled(file, value) for name, value in load_pickle(file, "meta").items()}


def _pickled(file: Path, value: Tensor) -> Header:
    shape = tuple(value.shape)
    origin = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    if origin is None or not value.is_contiguous():
        return Header(value.dtype, shape, file, -1, -1)
    start = int(origin) + int(value.storage_offset()) * value.dtype.itemsize
    return Header(value.dtype, shape, file, start, start + math.prod(shape) * value.dtype.itemsize)


def load_pickle(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Returns the tensors of a PyTorch file; refuses all but a flat table of tensors, executes nothing."""
    _refuse_empty(file)
    try:
        table = _load_mapped(file, device)
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{file}: contains something other than tensors{_culprit(error)}; save it as safetensors"
        ) from None
    except Exception as error:  # what a damaged or hostile stream of opcodes raises is anybody's guess
        raise SourceError(
            f"{file}: corrupt or truncated PyTorch file ({first_line(error)}); download it again"
        ) from None
    others = _not_tensors(table)
    if others:
        raise SourceError(
            f"{file}: holds more than tensors: {listed(others)}; expected a table of names and tensors"
        )
    return dict(table)


def _culprit(error: Exception) -> str:
    """Returns what torch refused, where its long message names it."""
    found = re.search(r"GLOBAL ([\w.]*\w)", str(error))
    return f" ({found[1]})" if found else ""


def _not_tensors(table: Any) -> list[str]:
    if not isinstance(table, dict):
        return [f"a {type(table).__name__}"]
    return [
        f"{name!r} is a {type(value).__name__}"
        for name, value in table.items()
        if not isinstance(value, Tensor) or not isinstance(name, str) or value.layout != torch.strided
    ]


def _load_mapped(file: Path, device: str) -> Any:
    """Returns what the file holds; files from before PyTorch 1.6 cannot be mapped and are read whole."""
    with file.open("rb") as stream:
        mapped = stream.read(4) == b"PK\x03\x04"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols: what matters is refused by weights_only
        return torch.load(file, map_location=device, weights_only=True, mmap=mapped)


def read_entries(header: Header, target: Tensor, start: int, seen: Seen | None = None) -> None:
    """Writes the entries of a tensor from `start` on into a flat float32 tensor; `seen` takes the bytes read.

    Raises:
        SourceError: the file ends inside, cannot be opened, or is of an old format that has no plain bytes.
    """
    if header.derived is not None:
        header.derived.fill(target, start, seen)
        return
    if not header.addressable:
        raise SourceError(f"{header.file}: a PyTorch file of an old format: save it as safetensors")
    raw = target if header.dtype == torch.float32 else torch.empty(target.numel(), dtype=header.dtype)
    data = raw.view(torch.uint8).numpy().data
    read_bytes(header.file, data, header.start + start * header.dtype.itemsize)
    if seen is not None:
        seen(data)
    if raw is not target:
        target.copy_(raw)


def read_bytes(file: Path, data: memoryview, start: int) -> None:
    """Fills memory with the bytes of a file from `start` on."""
    with file.open("rb", buffering=0) as stream:
        done = 0
        while done < len(data):
            got = os.preadv(stream.fileno(), [data[done:]], start + done)
            if got == 0:
                raise SourceError(f"{file}: ends early: it was cut short while being read")
            done += got


class TensorFiles:
    """Reads tensors by header through memory maps, so that no page is read before it is used."""

    def __init__(self) -> None:
        """Opens nothing yet."""
        self._maps: dict[Path, mmap.mmap] = {}
        self._pickles: dict[Path, dict[str, Tensor]] = {}

    def read(self, stored: str, header: Header) -> Tensor:
        """Returns a tensor on the file's own pages (copy on write: changing it never changes the file)."""
        if header.derived is not None:
            entries = torch.empty(math.prod(header.shape))
            header.derived.fill(entries, 0)
            return entries.reshape(header.shape).to(header.dtype)
        if not header.addressable:
            return self._pickle(header.file)[header.key or stored]
        if not header.nbytes:
            return torch.empty(header.shape, dtype=header.dtype)
        pages = self._map(header.file)
        count = math.prod(header.shape)
        if header.start % header.dtype.itemsize:  # torch wants aligned memory; the format does not promise it
            raw = torch.frombuffer(bytearray(pages[header.start : header.end]), dtype=torch.uint8)
            return raw.view(header.dtype).reshape(header.shape)
        return torch.frombuffer(pages, dtype=header.dtype, count=count, offset=header.start).reshape(
            header.shape
        )

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as stream:
                self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[file]

    def _pickle(self, file: Path) -> dict[str, Tensor]:
        if file not in self._pickles:
            self._pickles[file] = load_pickle(file)
        return self._pickles[file]
