"""How a file is written: packed or not, and in which encoding; and the type of a source of rows."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TextIO

from plait.data.columns import Table

Feed = Callable[[Sequence[str] | None], Iterator[Table]]
"""Gives the rows of a source in tables, read anew at each call, of the named columns or of all."""

PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
BINARY = (".parquet", ".arrow")
MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
"""What begins a file that says how its characters are written."""


def kind_of(path: Path) -> str:
    """Returns the suffix that says what a file holds: `.csv` for `x.csv` and for `x.csv.gz`."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return inner if suffix in PACKED and inner not in BINARY else suffix


def stem_of(path: Path) -> str:
    """Returns a file's name without what says how it is written."""
    return Path(path.stem).stem if path.suffix.lower() in PACKED else path.stem


def open_binary(path: Path) -> IO[bytes]:
    """Returns a file's bytes, unpacked where its name says that they are packed."""
    opened: IO[bytes] = PACKED.get(path.suffix.lower(), open)(path, "rb")
    return opened


def encoding_of(path: Path) -> str:
    """Returns how the characters of a file are written, as its first bytes say; UTF-8 where they do not."""
    with open_binary(path) as file:
        start = file.read(3)
    return next((name for mark, name in MARKS if start.startswith(mark)), "utf-8")


def open_text(path: Path, *, encoding: str | None = None, newline: str | None = None) -> TextIO:
    """Returns a file's characters."""
    return io.TextIOWrapper(open_binary(path), encoding or encoding_of(path), newline=newline)
