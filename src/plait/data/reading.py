"""One door for data: a file, a folder of splits, a Hub data set, a `datasets.Dataset`, or lists in memory."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plait.data.columns import Table, Wanted, counted, examples_from
from plait.data.encoding import Feed, kind_of
from plait.data.examples import Examples
from plait.data.files import FORMATS, batches_of, declared, is_data, one_line, open_file, sliced
from plait.data.folders import SPLITS, matching, split_of, splits_in
from plait.data.images import class_folder
from plait.data.objects import as_list, from_columns, from_mapping, from_rows
from plait.data.pictures import is_image_file
from plait.errors import DataError, did_you_mean
from plait.hub import reach_hub
from plait.recipe import DataSpec

CHUNK = 4096
"""Rows that are read at a time."""
SHOWN = 80
"""Characters of a name that a message repeats at most where it is no name."""
ENTRIES = ("path", "split", "text", "text_pair", "label")
"""What a mapping that describes data may say."""


@dataclass(frozen=True)
class Source:
    """Where rows come from, for messages, and the rows in small tables."""

    name: str
    tables: Feed

    def whole(self) -> Table:
        """Returns all rows as one table; a column that some rows lack holds None in them."""
        parts = list(self.tables(None))
        if len(parts) < 2:
            return replace(parts[0], source=self.name) if parts else Table({}, {}, self.name)
        names = dict.fromkeys(name for part in parts for name in part.columns)
        sizes = [len(next(iter(part.columns.values()), ())) for part in parts]
        columns = {
            name: list(
                itertools.chain.from_iterable(
                    part.columns.get(name, [None] * size) for part, size in zip(parts, sizes, strict=True)
                )
            )
            for name in names
        }
        declared_names = {name: labels for part in parts for name, labels in part.names.items()}
        return Table(columns, declared_names, self.name, all(part.untyped for part in parts))


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
    """Returns the examples of `data`. Rows without a text are left out, and a warning says how many.

    Args:
        data: A file (parquet, arrow, csv, tsv, json, jsonl, txt, those of text perhaps packed as gz), a glob of files,
            a folder of splits or one written by `save_to_disk`, a Hub data set (`owner/name`, `owner/name:config`), a
            `datasets.Dataset`, a DataFrame or arrow table, a dict of columns, rows or texts (a list, a Series, an
            array, a generator), a (texts, labels) tuple, a mapping of a `path` and the names below, or examples
            already read. A path or Hub id may end in `@split`.
        split: Which split, where there are several.
        text: Name of the text column; it and its pair are found by themselves where they have usual names.
        text_pair: Name of the second text column; without it, a named text stands alone.
        label: Name of the label column. A row without a label has None.
        limit: Keep a random subset of this size (fixed by `seed`, in the data's order).
        seed: Decides the subset.

    Raises:
        DataError: When there is nothing to read or it does not look like examples.
    """
    if isinstance(data, Examples):
        return data.sample(limit, seed)
    if is_described(data):
        told = described(data, split=split, text=text, text_pair=text_pair, label=label)
        return read_examples(told.pop("path"), limit=limit, seed=seed, **told)
    examples = examples_from(source_of(data, split).whole(), Wanted(text, text_pair, label))
    return examples.sample(limit, seed)


def to_predict(texts: Any) -> Examples:
    """Returns the texts to predict on: one, a list, or what `read_examples` takes but for a file's name as a str.

    Raises:
        DataError: When a row in memory has no text, since predictions answer row by row, or a text is a file's name.
    """
    data: Any = [one_text(texts)] if isinstance(texts, str) else texts
    if isinstance(data, Examples):
        return data
    if isinstance(data, list | tuple) and data and all(isinstance(text, str) for text in data):
        return Examples(tuple(data))
    told: dict[str, Any] = described(data) if is_described(data) else {"path": data}
    origin, split = told.pop("path"), told.pop("split", None)
    table = source_of(origin, split).whole()
    examples = examples_from(table, Wanted(**told))
    lost = len(next(iter(table.columns.values()), ())) - len(examples)
    if lost and not isinstance(origin, str | Path):
        raise DataError(f"{examples.source}: {counted(lost, 'row')} without a text; expected one to predict on in each")
    return examples


def one_text(text: str) -> str:
    """Returns a text that is given alone.

    Raises:
        DataError: When it is the name of a file: whether the file is meant is not guessed.
    """
    try:
        is_file = Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with what no name has
        is_file = False
    if is_file:
        raise DataError(f"{text}: is a file; give Path({text!r}) for the texts in it, or [{text!r}] for this text")
    return text


def is_described(data: Any) -> bool:
    """Says whether data is a mapping of a path and of what is wanted there."""
    return isinstance(data, Mapping) and isinstance(data.get("path"), str | Path)


def described(data: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """Returns what a mapping says of data, and what is given beside it.

    Raises:
        DataError: When it says something else.
    """
    told = {**data, **{name: value for name, value in given.items() if value is not None}}
    if unknown := [name for name in told if name not in ENTRIES]:
        raise DataError(f"{told['path']}: unknown entry {unknown[0]!r}{did_you_mean(unknown[0], ENTRIES)}")
    return told


def source_of(data: Any, split: str | None = None, chunk: int = CHUNK) -> Source:
    """Returns where the rows of data of any kind come from.

    Raises:
        DataError: When there is nothing, or nothing that has rows.
    """
    if isinstance(data, str | Path):
        return _of_origin(str(data), split, chunk)
    if _is_dataset(data):
        return _of_dataset(data, split, type(data).__name__, chunk)
    table = _of_examples(data) if isinstance(data, Examples) else _in_memory(data)
    return Source(table.source, lambda _: sliced(table, chunk))


def _in_memory(data: Any) -> Table:
    if isinstance(data, Mapping):
        return from_mapping(data, "data")
    if type(data).__module__.startswith("pandas") and hasattr(data, "columns"):
        return from_columns(data.to_dict("list"), "data")
    if hasattr(data, "__arrow_c_stream__") and (hasattr(data, "columns") or hasattr(data, "schema")):
        return _of_arrow(data)
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str | Mapping):
        return from_mapping({"text": data[0], "label": data[1]}, "data")
    if isinstance(data, Iterable) and not isinstance(data, bytes | bytearray):
        return from_rows(as_list(data, "data"), "list" if isinstance(data, list | tuple) else "data")
    raise DataError(
        f"data is a {type(data).__name__}; expected a path, a Hub data set, a Dataset, a dict of columns, "
        "a list of rows or texts, or (texts, labels)"
    )


def _of_arrow(data: Any) -> Table:
    import pyarrow as pa

    table = pa.table(data)
    batches = table.combine_chunks().to_batches()
    parts = list(batches_of(table.schema, iter(batches), "data"))
    return Source("data", lambda _: iter(parts)).whole()


def _of_examples(examples: Examples) -> Table:
    columns: dict[str, Sequence[Any]] = {"image" if examples.kind == "image_classification" else "text": examples.texts}
    if examples.pairs is not None:
        columns["text_pair"] = examples.pairs
    if examples.labels is not None:
        columns["label"] = examples.labels
    names = {"label": examples.label_names} if examples.label_names else {}
    return Table(columns, names, examples.source)


def _of_origin(origin: str, split: str | None, chunk: int) -> Source:
    path, there = _place(origin)
    if not there and "@" in origin:
        origin, _, split = origin.rpartition("@")
        path, _ = _place(origin)
    if path.is_dir():
        return _of_folder(path, split, chunk)
    if path.is_file():
        if split is not None and split_of(path) != split:
            raise DataError(f"{path}: is one file, without the split {split!r}; leave out @{split}")
        return Source(str(path), open_file(path, chunk))
    if files := matching(path):
        return _of_files(splits_in(files, origin), split, origin, chunk)
    _check_local(origin, path)
    return _of_hub(origin, split, chunk)


def _place(origin: str) -> tuple[Path, bool]:
    """Returns the path that a name is, and whether something lies there.

    Raises:
        DataError: When the system refuses the name: too long, a folder that may not be entered, an unknown user's `~`.
    """
    try:
        path = Path(origin).expanduser()
        return path, path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        shown = origin if len(origin) <= SHOWN else f"{origin[:SHOWN]}…"
        raise DataError(
            f"{shown}: cannot be looked for ({getattr(error, 'strerror', None) or error}); expected a path or a Hub "
            "data set; give texts themselves as a list"
        ) from None


def _check_local(origin: str, path: Path) -> None:
    """Raises `DataError` where a name can only be that of a file, or is nearly that of one."""
    outright = kind_of(path) in FORMATS or path.is_absolute() or origin.startswith((".", "~"))
    if outright or origin.count("/") > 1 or set(origin) & set("*?["):
        raise DataError(f"{origin}: no such file or folder")
    if path.parent.name and path.parent.is_dir():
        near = did_you_mean(path.name, [other.name for other in path.parent.iterdir()])
        raise DataError(f"{origin}: no such file or folder{near}")


def _of_folder(folder: Path, split: str | None, chunk: int) -> Source:
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        import datasets

        try:
            loaded = datasets.load_from_disk(str(folder))
        except Exception as error:
            raise DataError(f"{folder}: cannot be read as a saved data set: {one_line(error)}") from error
        return _of_dataset(loaded, split, str(folder), chunk)
    if (folder / "config.json").is_file() and any(
        path.suffix in {".safetensors", ".bin"} for path in folder.iterdir()
    ):
        raise DataError(f"{folder}: is a checkpoint, not data; expected a file of texts, such as train.csv")
    every = [path for path in folder.rglob("*") if path.is_file()]
    data, images = ([path for path in every if test(path)] for test in (is_data, is_image_file))
    if images and not data:
        return _of_images(folder, images, split)
    if images and len(data) == 1 and data[0].stem.startswith("metadata"):  # names of files and labels beside images
        return _of_origin(str(data[0]), None, chunk)
    found = splits_in(data, str(folder))
    return _of_files(found, split, str(folder), chunk)


def _of_images(folder: Path, images: Sequence[Path], split: str | None) -> Source:
    """Returns images in folders of classes, those perhaps in folders of splits."""
    tops = sorted({path.relative_to(folder).parts[0] for path in images if path.parent != folder})
    if tops and all(top.lower() in SPLITS for top in tops):
        folder = folder / _split(tops, split, str(folder))
        images = [path for path in images if path.is_relative_to(folder)]
    elif split is not None:
        raise DataError(f"{folder}: has no folder {split!r} of images; leave out @{split}")
    table = class_folder(folder, sorted(images))
    return Source(str(folder), lambda _: iter([table]))


def _of_files(found: Mapping[str, list[Path]], split: str | None, source: str, chunk: int) -> Source:
    files = found[_split(list(found), split, source)]
    feeds = [open_file(path, chunk) for path in files]
    name = str(files[0]) if len(files) == 1 else f"{source}@{split}" if split else source

    def feed(wanted: Sequence[str] | None) -> Iterator[Table]:
        return itertools.chain.from_iterable(one(wanted) for one in feeds)

    return Source(name, feed)


def _of_hub(name: str, split: str | None, chunk: int) -> Source:
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
    return _of_dataset(loaded, split, name, chunk)


def _split(found: Sequence[str], wanted: str | None, source: str) -> str:
    if not found:
        raise DataError(
            f"{source}: no data files; expected files such as train.parquet ({', '.join(FORMATS)})"
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
    return module is not None and isinstance(
        data, module.Dataset | module.DatasetDict | module.IterableDataset | module.IterableDatasetDict
    )


def _of_dataset(data: Any, split: str | None, source: str, chunk: int) -> Source:
    if isinstance(data, Mapping):
        chosen = _split(list(data), split, source)
        return _of_dataset(data[chosen], None, f"{source}@{chosen}", chunk)
    names = declared(data.features or {})
    if not hasattr(data, "__len__"):
        return Source(source, lambda _: _streamed(data, names, source, chunk))
    if data.format["type"] != "custom":
        data = data.with_format(None)

    def feed(wanted: Sequence[str] | None) -> Iterator[Table]:
        chosen = data if wanted is None or data.format["type"] else data.select_columns(list(wanted))
        for start in range(0, len(data), chunk):
            yield Table(dict(chosen[start : start + chunk]), names, source)

    return Source(source, feed)


def _streamed(data: Any, names: Mapping[str, tuple[str, ...]], source: str, chunk: int) -> Iterator[Table]:
    """Yields the rows of a data set that can only be gone through."""
    rows = iter(data)
    while block := list(itertools.islice(rows, chunk)):
        yield replace(from_rows(block, source), names=names)


def read(data: Any, *, limit: int | None = None, seed: int = 0) -> Examples:
    """Returns examples from a recipe's data entry or from data in memory."""
    if isinstance(data, DataSpec):
        return read_examples(data.path, limit=limit, seed=seed, **data.columns())
    return read_examples(data, limit=limit, seed=seed)
