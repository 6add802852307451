"""Files of rows as streams of small tables, read anew as often as wanted."""

from __future__ import annotations

import csv
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.data.columns import Table
from plait.data.delimited import read_delimited
from plait.data.encoding import PACKED, Feed, encoding_of, kind_of, open_binary, open_text
from plait.data.objects import from_mapping, from_rows
from plait.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

BUFFER = 1 << 20
"""Bytes of a parquet column chunk that are held at a time."""

UNREADABLE = (
    OSError, ValueError, EOFError, NotImplementedError, RecursionError, csv.Error, zlib.error, lzma.LZMAError,
)  # fmt: skip


def is_data(path: Path) -> bool:
    """Says whether a file's name is that of data which can be read."""
    return kind_of(path) in FORMATS and not path.name.startswith((".", "_"))


def open_file(path: Path, chunk: int) -> Feed:
    """Returns the rows of a file, `chunk` at a time.

    Raises:
        DataError: When nothing is known of files with such a name; while reading, when the file is not what its name
            says.
    """
    kind = kind_of(path)
    if kind not in FORMATS:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; expected {', '.join(FORMATS)}")
    inner = FORMATS[kind](path, chunk)

    def feed(wanted: Sequence[str] | None) -> Iterator[Table]:
        try:
            yield from inner(wanted)
        except UnicodeDecodeError:
            raise DataError(f"{path}: cannot be read as {kind[1:]}: {_undecodable(path)}") from None
        except UNREADABLE as error:
            raise DataError(f"{path}: cannot be read as {kind[1:]}: {one_line(error)}") from error

    return feed


def _undecodable(path: Path) -> str:
    """Returns what is wrong with the characters of a file, and where."""
    encoding, remedy = encoding_of(path), "save the file as UTF-8"
    if encoding == "utf-16":
        return f"it begins as UTF-16 and goes on otherwise; {remedy}"
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                return f"byte 0x{line[error.start]:02x} in line {number} is not UTF-8; {remedy}"
    return f"it is not UTF-8; {remedy}"


def one_line(error: BaseException) -> str:
    """Returns what an error says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _lines(path: Path, chunk: int) -> Iterator[list[tuple[int, str]]]:
    """Yields numbered lines, `chunk` at a time, cut at line feeds alone, not at U+2028 or U+0085 inside a text."""
    with open_text(path, newline="\n") as file:
        numbered = ((number, line.removesuffix("\n").removesuffix("\r")) for number, line in enumerate(file, 1))
        while block := list(itertools.islice(numbered, chunk)):
            yield block


def _text(path: Path, chunk: int) -> Feed:
    def feed(_: Sequence[str] | None) -> Iterator[Table]:
        for block in _lines(path, chunk):
            yield Table({"text": [line for _, line in block]}, {}, str(path))

    return feed


def _json(path: Path, chunk: int) -> Feed:
    """Returns the rows of a JSON document, or of JSON lines: either may come under the other's suffix."""
    held: list[Table] = []

    def feed(wanted: Sequence[str] | None) -> Iterator[Table]:
        if not held and _by_lines(path):
            yield from _json_lines(path, chunk, wanted)
            return
        if not held:
            held.append(_document(path))
        yield from sliced(held[0], chunk)

    return feed


def _by_lines(path: Path) -> bool:
    """Says whether each line of a file is a row of its own."""
    lines = path.name.lower().removesuffix(path.suffix.lower() if path.suffix.lower() in PACKED else "")
    named = not lines.endswith(".json")
    full = (line for block in _lines(path, 1) for _, line in block if line.strip())
    first = next(full, "")
    try:
        whole = json.loads(first)
    except ValueError:
        return named and first.strip()[:1] != "[" and first.strip() != "{"
    return (named and not isinstance(whole, list)) or next(full, None) is not None


def _document(path: Path) -> Table:
    with open_text(path) as file:
        loaded = json.load(file)
    if isinstance(loaded, Mapping):
        return from_mapping(loaded, str(path), row=True)
    if isinstance(loaded, list):
        return from_rows(loaded, str(path))
    raise ValueError(f"holds a {type(loaded).__name__}; expected a list of rows or a dict of columns")


def _json_lines(path: Path, chunk: int, wanted: Sequence[str] | None) -> Iterator[Table]:
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


def sliced(table: Table, chunk: int) -> Iterator[Table]:
    """Yields a table's rows, `chunk` at a time."""
    count = len(next(iter(table.columns.values()), ()))
    for start in range(0, count, chunk):
        part = {name: values[start : start + chunk] for name, values in table.columns.items()}
        yield replace(table, columns=part)


def _parquet(path: Path, chunk: int) -> Feed:
    def feed(wanted: Sequence[str] | None) -> Iterator[Table]:
        from pyarrow import parquet

        with parquet.ParquetFile(path, buffer_size=BUFFER) as file:
            kept = None if wanted is None else list(wanted)
            yield from batches_of(
                file.schema_arrow, file.iter_batches(batch_size=chunk, columns=kept), str(path)
            )

    return feed


def _arrow(path: Path, chunk: int) -> Feed:
    """Returns the rows of an arrow file: the format of streams, as `datasets` writes it, or that of files."""

    def feed(wanted: Sequence[str] | None) -> Iterator[Table]:
        import pyarrow as pa

        with pa.memory_map(str(path)) as source:
            try:
                file = pa.ipc.open_stream(source)
                parts = iter(file)
            except pa.ArrowInvalid:
                file = pa.ipc.open_file(source)
                parts = (file.get_batch(at) for at in range(file.num_record_batches))
            small = (part.slice(at, chunk) for part in parts for at in range(0, part.num_rows, chunk))
            kept = (part if wanted is None else part.select(list(wanted)) for part in small)
            yield from batches_of(file.schema, kept, str(path))

    return feed


def batches_of(schema: pa.Schema, batches: Iterator[pa.RecordBatch], source: str) -> Iterator[Table]:
    """Yields arrow batches as tables; the label names are those that `datasets` wrote into the schema."""
    names = _declared_in(schema)
    for batch in batches:
        if batch.num_rows:
            yield Table({name: batch[name].to_pylist() for name in batch.schema.names}, names, source)


def _declared_in(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    about = (schema.metadata or {}).get(b"huggingface")
    if about is None:
        return {}
    import datasets

    return declared(datasets.Features.from_dict(json.loads(about)["info"]["features"]))


def declared(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Returns the label names that the columns declare, lists of labels included."""
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: tuple(feature.names) for name, feature in inner.items() if hasattr(feature, "names")}


def _delimited(path: Path, chunk: int) -> Feed:
    return read_delimited(path, chunk)


FORMATS: dict[str, Callable[[Path, int], Feed]] = {
    ".parquet": _parquet,
    ".csv": _delimited,
    ".tsv": _delimited,
    ".json": _json,
    ".jsonl": _json,
    ".ndjson": _json,
    ".txt": _text,
    ".arrow": _arrow,
}
