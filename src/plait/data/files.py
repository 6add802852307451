"""Files of rows as streams of small tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plait.data.columns import Table
from plait.data.reading import FIELD_LIMIT, declared, from_rows, one_line
from plait.errors import DataError

BUFFER = 1 << 20
"""Bytes of a parquet column chunk that are held at a time."""
Feed = Callable[[Sequence[str] | None], Iterator[Table]]
"""Gives the rows of a source in tables, read anew at each call, of the named columns or of all."""


def stream(path: Path, chunk: int, wanted: Sequence[str] | None) -> Iterator[Table]:
    """Yields the rows of a file, `chunk` at a time; only the columns `wanted` where some are named.

    Raises:
        DataError: When the file cannot be read as what its name says.
    """
    try:
        yield from STREAMS[path.suffix.lower()](path, chunk, wanted)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]}: {one_line(error)}") from error


def _lines(path: Path, chunk: int) -> Iterator[list[tuple[int, str]]]:
    """Yields numbered lines, `chunk` at a time."""
    block: list[tuple[int, str]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            block.append((number, line.rstrip("\n")))
            if len(block) == chunk:
                yield block
                block = []
    if block:
        yield block


def _stream_text(path: Path, chunk: int, _: Sequence[str] | None) -> Iterator[Table]:
    for block in _lines(path, chunk):
        yield Table({"text": [line for _, line in block]}, {}, str(path))


def _stream_jsonl(path: Path, chunk: int, wanted: Sequence[str] | None) -> Iterator[Table]:
    for block in _lines(path, chunk):
        rows = [_parsed(number, line) for number, line in block if line.strip()]
        if not rows:
            continue
        table = from_rows(rows, str(path))
        missing = {name: [None] * len(rows) for name in wanted or () if name not in table.columns}
        yield replace(table, columns={**table.columns, **missing})


def _parsed(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {error}") from error


def _stream_csv(path: Path, chunk: int, wanted: Sequence[str] | None) -> Iterator[Table]:
    csv.field_size_limit(FIELD_LIMIT)
    dialect = "excel-tab" if path.suffix.lower() == ".tsv" else "excel"
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, dialect=dialect)
        names = list(reader.fieldnames or ())
        rows: list[dict[str, Any]] = []
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"a row does not have {len(names)} columns, near line {reader.line_num}")
            rows.append(row)
            if len(rows) == chunk:
                yield _of_rows(rows, wanted or names, path)
                rows = []
        if rows:
            yield _of_rows(rows, wanted or names, path)


def _of_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> Table:
    return Table({name: [row[name] for row in rows] for name in names}, {}, str(path))


def _stream_parquet(path: Path, chunk: int, wanted: Sequence[str] | None) -> Iterator[Table]:
    import datasets
    from pyarrow import parquet

    with parquet.ParquetFile(path, buffer_size=BUFFER) as file:
        names = declared(datasets.Features.from_arrow_schema(file.schema_arrow))
        for batch in file.iter_batches(batch_size=chunk, columns=None if wanted is None else list(wanted)):
            if batch.num_rows:
                columns = {name: batch[name].to_pylist() for name in batch.schema.names}
                yield Table(columns, names, str(path))


STREAMS: dict[str, Callable[[Path, int, Sequence[str] | None], Iterator[Table]]] = {
    ".parquet": _stream_parquet,
    ".csv": _stream_csv,
    ".tsv": _stream_csv,
    ".jsonl": _stream_jsonl,
    ".ndjson": _stream_jsonl,
    ".txt": _stream_text,
}
