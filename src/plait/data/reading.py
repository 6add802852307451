"""One door for data: a file, a folder of splits, a Hub data set, a `datasets.Dataset`, or lists in memory."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plait.data.columns import LABEL, Table, Wanted, counted, examples_from
from plait.data.examples import Examples
from plait.errors import DataError, did_you_mean
from plait.hub import reach_hub

FIELD_LIMIT = 1 << 27


def read_examples(
    data: Any,
    *,
    split: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Examples:
    """Returns the examples of `data`.

    Args:
        data: A file (parquet, csv, tsv, json, jsonl, txt), a folder with one file a split or one written by
            `Dataset.save_to_disk`, a Hub data set (`owner/name`, `owner/name:config`), a `datasets.Dataset`,
            a dict of columns, a list of rows, a list of texts, a (texts, labels) tuple, a mapping of a `path`
            and the names below, or examples already read. A path or Hub id may end in `@split`.
        split: Which split, where there are several.
        text: Name of the text column; it and its pair are found by themselves where they have usual names.
        text_pair: Name of the second text column; without it, a named text stands alone.
        label: Name of the label column.
        limit: Keep a random subset of this size (fixed by `seed`, in the data's order).
        seed: Decides the subset.

    Raises:
        DataError: When there is nothing to read or it does not look like examples.
    """
    if isinstance(data, Examples):
        return data.sample(limit, seed)
    if isinstance(data, Mapping) and isinstance(data.get("path"), str | Path):
        given = {"split": split, "text": text, "text_pair": text_pair, "label": label}
        told = {**data, **{name: value for name, value in given.items() if value is not None}}
        return _read_described(told, limit, seed)
    examples = examples_from(table_of(data, split, label), Wanted(text, text_pair, label))
    return examples.sample(limit, seed)


def _read_described(told: Mapping[str, Any], limit: int | None, seed: int) -> Examples:
    """Returns the examples that a mapping of a path and column names describes."""
    known = ("path", "split", "text", "text_pair", "label")
    if unknown := [name for name in told if name not in known]:
        raise DataError(f"{told['path']}: unknown entry {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    options = {name: value for name, value in told.items() if name != "path"}
    return read_examples(told["path"], limit=limit, seed=seed, **options)


def table_of(data: Any, split: str | None, label: str | None = None) -> Table:
    """Returns data of any kind as columns; `label` names a column whose texts may be numbers."""
    if isinstance(data, str | Path):
        return _from_origin(str(data), split, label)
    if _is_dataset(data):
        return _from_dataset(data, split, type(data).__name__)
    if isinstance(data, Mapping):
        return _from_columns(data)
    if hasattr(data, "columns") and hasattr(data, "to_dict"):
        return _from_columns(data.to_dict("list"))
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str | Mapping):
        return _from_columns({"text": data[0], "label": data[1]})
    if isinstance(data, Sequence):
        return from_rows(list(data), "list")
    raise DataError(
        f"data is a {type(data).__name__}; expected a path, a Hub data set, a Dataset, a dict of columns, "
        "a list of rows or texts, or (texts, labels)"
    )


def _from_origin(origin: str, split: str | None, label: str | None) -> Table:
    path = Path(origin).expanduser()
    if not path.exists() and "@" in origin:
        origin, _, split = origin.rpartition("@")
        path = Path(origin).expanduser()
    if path.is_dir():
        return _from_folder(path, split, label)
    if path.is_file():
        return _from_file(path, label)
    if (
        path.suffix.lower() in READERS
        or path.is_absolute()
        or origin.startswith(".")
        or origin.count("/") > 1
    ):
        raise DataError(f"{origin}: no such file or folder")
    if path.parent.name and path.parent.is_dir():
        near = did_you_mean(path.name, [other.name for other in path.parent.iterdir()])
        raise DataError(f"{origin}: no such file or folder{near}")
    return _from_hub(origin, split)


def _from_file(path: Path, label: str | None) -> Table:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; expected {', '.join(READERS)}")
    try:
        table = reader(path)
    except (OSError, ValueError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]}: {one_line(error)}") from error
    return _typed(table, label) if reader is _read_csv else table


def _from_folder(folder: Path, split: str | None, label: str | None) -> Table:
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        import datasets

        return _from_dataset(datasets.load_from_disk(str(folder)), split, str(folder))
    if (folder / "config.json").is_file() and any(
        path.suffix in {".safetensors", ".bin"} for path in folder.iterdir()
    ):
        raise DataError(f"{folder}: is a checkpoint, not data; expected a file of texts, such as train.csv")
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in READERS}
    return _from_file(files[_split(list(files), split, str(folder))], label)


def _from_hub(name: str, split: str | None) -> Table:
    import datasets

    repository, _, config = name.partition(":")
    with reach_hub() as obstacle:
        try:
            loaded = datasets.load_dataset(repository, config or None)
        except Exception as error:
            if obstacle and isinstance(error, OSError):
                raise DataError(
                    f"{name}: no such file or folder here, and the Hub cannot be reached ({obstacle})"
                ) from None
            raise DataError(
                f"{name}: no such file or folder here, and no data set of this name could be loaded from the Hub: "
                f"{one_line(error)}"
            ) from error
    return _from_dataset(loaded, split, name)


def _split(found: Sequence[str], wanted: str | None, source: str) -> str:
    if not found:
        raise DataError(
            f"{source}: no data files; expected files such as train.parquet ({', '.join(READERS)})"
        )
    if wanted is None and len(found) == 1:
        return found[0]
    if wanted is None:
        raise DataError(
            f"{source}: has the splits {', '.join(found)}; say which one, such as {source}@{found[0]}"
        )
    if wanted not in found:
        raise DataError(f"{source}: no split {wanted!r}{did_you_mean(wanted, found)}")
    return wanted


def _is_dataset(data: Any) -> bool:
    """Says whether data is a `datasets` object, without importing a library that nobody has used so far."""
    module = sys.modules.get("datasets")
    return module is not None and isinstance(data, module.Dataset | module.DatasetDict)


def _from_dataset(data: Any, split: str | None, source: str) -> Table:
    if isinstance(data, Mapping):
        chosen = _split(list(data), split, source)
        return _from_dataset(data[chosen], None, f"{source}@{chosen}")
    columns = {name: data[name][:] for name in data.column_names}
    return Table(columns, declared(data.features), source)


def declared(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Returns the label names that the columns declare, lists of labels included."""
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: tuple(feature.names) for name, feature in inner.items() if hasattr(feature, "names")}


def _from_columns(columns: Mapping[str, Any]) -> Table:
    lists = {str(name): list(values) for name, values in columns.items() if values is not None}
    sizes = {name: len(values) for name, values in lists.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"columns differ in length: {', '.join(f'{n} {s}' for n, s in sizes.items())}")
    return Table(lists, {}, "data")


def from_rows(rows: list[Any], source: str) -> Table:
    """Returns rows, texts or dictionaries, as columns."""
    if all(isinstance(row, str) or row is None for row in rows) and any(row is not None for row in rows):
        return Table({"text": rows}, {}, source)
    bad = next((i for i, row in enumerate(rows) if not isinstance(row, Mapping)), None)
    if bad is not None:
        raise DataError(
            f"{source}: row {bad} is a {type(rows[bad]).__name__}; expected texts alone, or one dict a row"
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table({name: [row.get(name) for row in rows] for name in names}, {}, source)


def _read_parquet(path: Path) -> Table:
    import datasets
    from pyarrow import parquet

    table = parquet.read_table(path)
    features = datasets.Features.from_arrow_schema(table.schema)
    return Table(
        {name: table[name].to_pylist() for name in table.column_names}, declared(features), str(path)
    )


def _read_csv(path: Path) -> Table:
    csv.field_size_limit(FIELD_LIMIT)
    dialect = "excel-tab" if path.suffix.lower() == ".tsv" else "excel"
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, dialect=dialect)
        rows = list(reader)
        names = list(reader.fieldnames or ())
    ragged = [str(i + 2) for i, row in enumerate(rows) if None in row or None in row.values()]
    if ragged:
        lack = f"{counted(len(ragged), 'row')} {'does' if len(ragged) == 1 else 'do'} not have"
        raise ValueError(f"{lack} {len(names)} columns, first near line {ragged[0]}")
    return Table({name: [row[name] for row in rows] for name in names}, {}, str(path))


def _typed(table: Table, label: str | None) -> Table:
    """Returns a table of texts with numbers for labels where every one is a number; texts stay texts, even "1984"."""
    chosen = [name for name in table.columns if name == label or name.lower() in LABEL]
    return replace(table, columns={**table.columns, **{n: _numbers(table.columns[n]) for n in chosen}})


def _numbers(values: Sequence[str]) -> list[Any]:
    for convert in (int, float):
        try:
            return [convert(value) for value in values]
        except ValueError:
            continue
    return [value or None for value in values]


def _read_json(path: Path) -> Table:
    loaded = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(loaded, Mapping) and "data" in loaded:
        loaded = loaded["data"]
    if isinstance(loaded, Mapping):
        return Table(_from_columns(loaded).columns, {}, str(path))
    if isinstance(loaded, list):
        return from_rows(loaded, str(path))
    raise ValueError(f"holds a {type(loaded).__name__}; expected a list of rows or a dict of columns")


def _read_jsonl(path: Path) -> Table:
    rows = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error}") from error
    return from_rows(rows, str(path))


def _read_text(path: Path) -> Table:
    return Table({"text": [line for line in _lines(path) if line.strip()]}, {}, str(path))


def _lines(path: Path) -> list[str]:
    """Returns lines as files are cut into them: at line feeds alone, not at U+2028 or U+0085 inside a text."""
    return path.read_text(encoding="utf-8-sig").split("\n")


def one_line(error: BaseException) -> str:
    """Returns what an error says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


READERS: dict[str, Callable[[Path], Table]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".txt": _read_text,
}
