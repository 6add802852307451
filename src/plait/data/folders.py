"""Folders of data: files that are parts of one split, and names of splits; apart from reading.py, which reads one."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from plait.data.encoding import PACKED, stem_of
from plait.data.files import is_data
from plait.errors import DataError, listed

logger = logging.getLogger("plait")

SHARD = re.compile(r"(?P<split>.+?)[-_.](?P<at>\d+)-of-(?P<all>\d+)")
PART = re.compile(r"part-\d+.*")
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
"""Folders of these names hold a split each."""
ONLY = "train"
"""What the only split is called whose files do not say."""


def matching(pattern: Path) -> list[Path]:
    """Returns the files of data that a pattern such as `data/*.parquet` matches, in the order of their names."""
    if not glob.has_magic(str(pattern)):
        return []
    found = (Path(name) for name in sorted(glob.glob(str(pattern), recursive=True)))  # noqa: PTH207 - any root
    return [path for path in found if path.is_file() and is_data(path)]


def split_of(path: Path) -> str:
    """Returns the split that a file's name says: `train` for `train.csv` and for `train-00000-of-00002.parquet`."""
    stem = stem_of(path)
    if shard := SHARD.fullmatch(stem):
        return shard["split"]
    inside = path.parent.name
    if PART.fullmatch(stem) or (inside.lower() in SPLITS and stem.isdecimal()):
        return inside if inside.lower() in SPLITS else ONLY
    return stem


def splits_in(files: Iterable[Path], source: str) -> dict[str, list[Path]]:
    """Returns the files of each split in order.

    Raises:
        DataError: When the files lie in folders of which each could be a data set, or a split is there in two formats.
    """
    every = sorted(files)
    if not every:
        return {}
    high = min(len(path.parts) for path in every)
    top = [path for path in every if len(path.parts) == high]
    folders = list(dict.fromkeys(path.parent for path in top))
    if len(folders) > 1 and any(folder.name.lower() not in SPLITS for folder in folders):
        raise DataError(
            f"{source}: has the folders {listed((f.name for f in folders), 10)}; name one of them, such as {folders[0]}"
        )
    found: dict[str, list[Path]] = {}
    for path in top:
        split = path.parent.name if len(folders) > 1 else split_of(path)
        found.setdefault(split, []).append(path)
    for split, parts in found.items():
        _check_parts(split, parts, source)
    return dict(sorted(found.items()))


def _check_parts(split: str, parts: list[Path], source: str) -> None:
    """Raises `DataError` for a split that is there twice; warns of parts that are not."""
    kinds = {"".join(p.suffixes[-2:] if p.suffix.lower() in PACKED else p.suffixes[-1:]).lower() for p in parts}
    if len(kinds) > 1:
        raise DataError(
            f"{source}: {split} is there in several formats ({listed((p.name for p in parts), 5)}); name the file"
        )
    shards = [found for path in parts if (found := SHARD.fullmatch(stem_of(path)))]
    if shards and len(shards) < int(shards[0]["all"]):
        logger.warning(
            "%s: only %d of the %d parts of %s are there", source, len(shards), int(shards[0]["all"]), split
        )
