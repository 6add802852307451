"""Tables written as csv, jsonl or parquet, as the name of the file says."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.errors import OutputError, one_line

Columns = Mapping[str, Sequence[Any]]
SUFFIXES = (".csv", ".jsonl", ".parquet")


def check_table(file: str | Path, option: str, *, overwrite: bool = True) -> Path:
    """Returns the file of a table that can be written.

    Args:
        file: where to.
        option: what asks for it, for messages.
        overwrite: whether a file that exists is replaced.

    Raises:
        OutputError: another suffix, no such folder, or a file that exists.
    """
    place = Path(file)
    if place.suffix not in SUFFIXES:
        raise OutputError(f"{option} {file}: the name says the format, expected one of {', '.join(SUFFIXES)}")
    if not place.absolute().parent.is_dir():
        raise OutputError(f"{option} {file}: {place.absolute().parent} is not a folder: make it first")
    if place.exists() and not overwrite:
        raise OutputError(f"{option} {file} exists: choose another file or pass --overwrite")
    return place


def write_table(file: Path, columns: Columns) -> None:
    """Writes columns of equal length; in csv a list is written as JSON.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        if file.suffix == ".parquet":
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.table(dict(columns)), file)
        elif file.suffix == ".jsonl":
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(columns))
            with file.open("w", encoding="utf-8") as handle:
                handle.writelines(lines)
        else:
            with file.open("w", encoding="utf-8", newline="") as handle:
                writer = csv.DictWriter(handle, list(columns))
                writer.writeheader()
                writer.writerows({name: _cell(value) for name, value in row.items()} for row in _rows(columns))
    except OSError as error:
        raise OutputError(f"{file}: cannot be written: {one_line(error)}") from error


def _rows(columns: Columns) -> Iterator[dict[str, Any]]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else value
