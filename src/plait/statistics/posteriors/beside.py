"""What a store keeps of its texts beside what the teachers said: computed once, shard by shard, for every gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait import progress
from plait.data import Examples, Texts
from plait.errors import DataError
from plait.statistics.posteriors.files import read_facts, read_shard, write_shard
from plait.statistics.posteriors.run import hash_texts
from plait.statistics.posteriors.store import Store, shard_key, texts_file

Reader = Callable[[Examples, progress.Tick], Tensor]
"""Returns one row per text."""


@dataclass(frozen=True)
class Beside:
    """Of n texts one row each, and how many texts were read for it now: 0 where the store had them all."""

    values: Tensor
    read: int


def kept_beside(
    store: Store,
    texts: Texts,
    place: str,
    facts: Mapping[str, Any],
    opened: Callable[[], AbstractContextManager[Reader]],
) -> Beside:
    """Returns what a reader makes of all texts of a store; shards that are there are not computed again.

    Args:
        store: of these texts.
        texts: the texts.
        place: the folder in the store.
        facts: what decides the values; shards of other facts are computed anew.
        opened: gives the reader, with its model in memory, where there is something to compute.

    Raises:
        DataError: a damaged shard, or texts that have changed.
    """
    folder = store.folder / place
    files = [folder / f"{number:05d}.safetensors" for number in range(store.shards)]
    pending = [n for n, file in enumerate(files) if not _is_done(store, file, n, facts)]
    if pending:
        with opened() as reader:
            _compute(store, texts, files, pending, facts, reader)
    values = torch.cat([read_shard(file)[0]["values"] for file in files])
    chunk = store.record.chunk
    return Beside(values, sum(min(chunk, store.count - number * chunk) for number in pending))


def _is_done(store: Store, file: Path, number: int, facts: Mapping[str, Any]) -> bool:
    if not file.exists():
        return False
    found = read_facts(file)
    wanted = {**facts, "texts": shard_key(store.folder, number)}
    return all(found.get(name) == value for name, value in wanted.items())


def _compute(  # noqa: PLR0917 - a store's shards and all that fills them
    store: Store, texts: Texts, files: Sequence[Path], pending: Sequence[int], facts: Mapping[str, Any], reader: Reader
) -> None:
    wanted = set(pending)
    with progress.task(f"reading for {files[0].parent.parent.name}", store.count) as tick:
        for number, examples in enumerate(texts.chunks(store.record.chunk)):
            if number not in wanted:
                continue
            hashes = read_shard(texts_file(store.folder, number))[0]["hashes"]
            if not torch.equal(hash_texts(examples), hashes):
                raise DataError(f"{texts.source}: changed while it was read; leave it alone, and try again")
            key = shard_key(store.folder, number)
            write_shard(files[number], {"values": reader(examples, tick)}, {**facts, "texts": key})
