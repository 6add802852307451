"""CSV and TSV: which mark separates cells, whether quotation marks mean anything, how characters are written."""

from __future__ import annotations

import codecs
import csv
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from plait.data.columns import Table, counted
from plait.data.encoding import Feed, encoding_of, kind_of, open_binary, open_text

logger = logging.getLogger("plait")

FIELD_LIMIT = 1 << 27
BLOCK = 1 << 16
WESTERN = "cp1252"
"""What Excel writes in much of Europe and America where it does not write UTF-8."""

QUOTED: Mapping[str, Any] = {"strict": True}
ESCAPED: Mapping[str, Any] = {"strict": True, "doublequote": False, "escapechar": "\\"}
PLAIN: Mapping[str, Any] = {"quoting": csv.QUOTE_NONE}


@dataclass(frozen=True)
class Layout:
    """How a file is written: characters, what separates cells, what quotation marks mean, lines before the header.

    `close` says that cells begin with a space behind the separator, which is no part of them.
    """

    encoding: str
    delimiter: str
    marks: Mapping[str, Any]
    before: int
    close: bool


@dataclass(frozen=True)
class Trial:
    """What came of reading a file in one way: rows, lines, and the first trouble with it."""

    rows: int
    lines: int
    trouble: str | None
    quoted: bool


def read_delimited(path: Path, chunk: int) -> Feed:
    """Returns the rows of a CSV or TSV file, `chunk` at a time, every cell a text."""

    @cache
    def layout() -> Layout:
        return layout_of(path)

    def feed(wanted: Sequence[str] | None) -> Iterator[Table]:
        rows = _rows(path, layout())
        header = next(rows, (0, []))[1]
        names = column_names(header)
        places = {name: at for at, name in enumerate(names) if wanted is None or name in wanted}
        block: list[list[str]] = []

        def table() -> Table:
            return Table({n: [row[at] for row in block] for n, at in places.items()}, {}, str(path), True)

        for line, row in rows:
            if len(row) != len(names):
                raise ValueError(_ragged(1, len(names), line))
            block.append(row)
            if len(block) == chunk:
                yield table()
                block = []
        if block:
            yield table()

    return feed


def column_names(header: Sequence[str]) -> list[str]:
    """Returns the names in a header; one that is there again gets a number, as pandas gives it."""
    cells = [cell.strip() for cell in header]
    names: list[str] = []
    taken, again = set(cells), dict.fromkeys(cells, -1)
    for cell in cells:
        again[cell] += 1
        name = f"{cell}.{again[cell]}" if again[cell] else cell
        while again[cell] and name in taken:
            again[cell] += 1
            name = f"{cell}.{again[cell]}"
        taken.add(name)
        names.append(name)
    return names


def _rows(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows that are not blank with their lines; empty cells behind the last column are left out."""
    csv.field_size_limit(FIELD_LIMIT)
    with open_text(path, encoding=layout.encoding, newline="") as file:
        for _ in range(layout.before):
            file.readline()
        reader = csv.reader(
            file, delimiter=layout.delimiter, skipinitialspace=layout.close, **layout.marks
        )
        width = 0
        try:
            for row in reader:
                if not row:
                    continue
                width = width or len(row)
                surplus = len(row) > width and not any(row[width:])
                yield reader.line_num + layout.before, row[:width] if surplus else row
        except csv.Error as error:
            raise csv.Error(f"{error}, near line {reader.line_num + layout.before}") from error


def layout_of(path: Path) -> Layout:
    """Returns how a file is written, and says so where that is not as the file's name has it.

    A CSV file is quoted unless its quotation marks make no sense. A TSV file is not, unless they evidently do: tables
    of texts are often written without, and a mark that is a text's own would swallow the rows behind it.

    Raises:
        ValueError: When no way of reading gives every row the same columns.
    """
    encoding, marks = _characters(path)
    delimiter, before, close = _header(path, encoding)
    tsv = kind_of(path) == ".tsv"

    def tried(way: Mapping[str, Any]) -> tuple[Layout, Trial]:
        layout = Layout(encoding, delimiter, way, before, close and way is not PLAIN)
        return layout, _try(path, layout)

    plain, bare = tried(PLAIN)
    if not marks:
        return _accept(plain, bare)
    quoted, full = tried(QUOTED)
    if tsv and bare.trouble is None and not (full.trouble is None and bare.quoted):
        return plain
    if full.trouble is None:
        _say_rows(path, full, bare)
        return quoted
    escaped, other = tried(ESCAPED)
    if other.trouble is None and _has(path, b'\\"'):
        return escaped
    if bare.trouble is None:
        logger.warning(
            "%s: quotation marks are read as part of the texts: %s; %s are %s",
            path, full.trouble, counted(bare.lines, "line"), counted(bare.rows, "row"),
        )  # fmt: skip
        return plain
    return _accept(quoted, full)


def _accept(layout: Layout, trial: Trial) -> Layout:
    if trial.trouble is not None:
        raise ValueError(trial.trouble)
    return layout


def _say_rows(path: Path, full: Trial, bare: Trial) -> None:
    """Says how many lines became how many rows where quoted texts run over several; a warning where they need not."""
    if full.rows == bare.rows:
        return
    told = f"{counted(full.lines, 'line')} are {counted(full.rows, 'row')}"
    if bare.trouble is None:
        logger.warning(
            "%s: %s, as quoted texts run over lines; if the marks are the texts' own, there are %d: write them "
            "doubled, or the file as .tsv", path, told, bare.rows,
        )  # fmt: skip
    else:
        logger.info("%s: %s, as quoted texts run over lines", path, told)


def _try(path: Path, layout: Layout) -> Trial:
    """Returns what comes of reading a file in one way, never more than a row of it held."""
    rows, lines, width, ragged, first = 0, 0, 0, 0, 0
    doubled = against = False
    header: list[str] = []
    trouble = None
    try:
        for lines, row in _rows(path, layout):
            if not width:
                width, header = len(row), row
                continue
            rows += 1
            if len(row) != width:
                ragged, first = ragged + 1, first or lines
            for cell in row if layout.marks is PLAIN else ():
                if '"' in cell:
                    wrapped = re.fullmatch(r'\s*"((?:[^"]|"")*)"\s*', cell)
                    against = against or wrapped is None
                    doubled = doubled or (wrapped is not None and '""' in wrapped[1])
    except csv.Error as error:
        trouble = _unpaired(error)
    if ragged and trouble is None:
        trouble = _ragged(ragged, width, first)
    named = bool(header) and all(re.fullmatch(r'"[^"]+"', cell) for cell in header)
    return Trial(rows, max(lines - 1, 0), trouble, (doubled or named) and not against)


def _unpaired(error: csv.Error) -> str:
    if "field larger" in str(error):
        return f"{error}: is a quotation mark never closed?"
    where = str(error).rpartition(", near ")[2]
    what = "is never closed" if "unexpected end" in str(error) else "is followed by more text"
    opened = "a quotation mark that opens a text" if "unexpected end" in str(error) else "one that closes a text"
    return f"{opened} {what} (near {where}); marks inside a quoted text must be doubled"


def _ragged(count: int, width: int, line: int) -> str:
    lack = f"{counted(count, 'row')} {'does' if count == 1 else 'do'} not have"
    return f"{lack} {width} column{'' if width == 1 else 's'}, first near line {line}"


def _characters(path: Path) -> tuple[str, bool]:
    """Returns a file's encoding and whether there are quotation marks in it."""
    encoding, marks, sound = encoding_of(path), False, True
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_binary(path) as file:
        while block := file.read(BLOCK):
            marks = marks or b'"' in block
            if sound and encoding == "utf-8":
                sound = _decodes(decoder, block)
    if sound and encoding == "utf-8":
        sound = _decodes(decoder, b"", final=True)
    if not sound and (sample := _western(path)) is not None:
        logger.warning(
            "%s: is not UTF-8; reading it as Windows-1252 (such as %s); if that is wrong, save it as UTF-8",
            path, sample,
        )  # fmt: skip
        return WESTERN, marks
    return encoding, marks


def _decodes(decoder: codecs.IncrementalDecoder, block: bytes, *, final: bool = False) -> bool:
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError:
        return False
    return True


def _western(path: Path) -> str | None:
    """Returns a word that is not ASCII, read as Windows-1252; None where a file cannot be that.

    A no-break space parts words and is in none of them: only where there is nothing else does it stand for itself.
    """
    sample = None
    with open_binary(path) as file:
        for line in file:
            try:
                text = line.decode(WESTERN)
            except UnicodeDecodeError:
                return None
            if re.search(r"[\x00-\x08\x0e-\x1f]", text):
                return None
            if sample is None and not text.isascii():
                sample = next((repr(word.strip(',;"')) for word in text.split() if not word.isascii()), None)
    return sample or "a no-break space"


def _has(path: Path, what: bytes) -> bool:
    with open_binary(path) as file:
        return any(what in line for line in file)


def _header(path: Path, encoding: str) -> tuple[str, int, bool]:
    """Returns what separates cells, the lines before the header, and whether cells begin with a space to leave out."""
    with open_text(path, encoding=encoding) as file:
        first = file.readline().strip("\n")
        if told := re.fullmatch(r"sep=(.)", first):
            return told[1], 1, False
    bare = re.sub(r'"[^"]*"', "", first)
    usual = "\t" if kind_of(path) == ".tsv" else ","
    others = (mark for mark in (",", ";", "\t", "|") if mark in bare)
    delimiter = usual if usual in bare else next(others, usual)
    cells = bare.split(delimiter)[1:]
    return delimiter, 0, bool(cells) and delimiter != "\t" and all(cell.startswith(" ") for cell in cells)
