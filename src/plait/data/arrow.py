"""Texts in an Arrow file; apart from streaming so that one file knows how they lie on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.data.columns import Table

if TYPE_CHECKING:
    from plait.data.examples import Examples
    from plait.data.texts import Hashes, Texts


def write_texts(file: Path, texts: Texts, hashes: list[Hashes]) -> None:
    """Writes texts with pairs, labels and hashes in one pass; the hashes are given to `hashes` too.

    Labels are kept as JSON, which holds names, numbers, several of them, and none.
    """
    import pyarrow as pa

    writer = None
    try:
        for examples in texts.chunks():
            hashes.append(examples.hashes())
            batch = pa.RecordBatch.from_pydict(_columns(examples, hashes[-1]))
            if writer is None:
                writer = pa.ipc.new_file(str(file), batch.schema)
            writer.write_batch(batch)
    finally:
        if writer is not None:
            writer.close()


def _columns(examples: Examples, hashes: Hashes) -> dict[str, Any]:
    import pyarrow as pa

    found: dict[str, Any] = {"text": pa.array(examples.texts, pa.string())}
    if examples.pairs is not None:
        found["text_pair"] = pa.array(examples.pairs, pa.string())
    if examples.labels is not None:
        found["label"] = pa.array([json.dumps(label) for label in examples.labels], pa.string())
    found |= {name: pa.array(hashes[:, at]) for at, name in enumerate(("hash_low", "hash_high"))}
    return found


def texts_in(file: Path) -> Iterator[Table]:
    """Yields the texts of a file in tables, read from a map of it."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as mapped:
        reader = pa.ipc.open_file(mapped)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            names = [name for name in ("text", "text_pair", "label") if name in batch.schema.names]
            columns = {name: batch.column(name).to_pylist() for name in names}
            if "label" in columns:
                labels = map(json.loads, columns["label"])
                columns["label"] = [tuple(label) if isinstance(label, list) else label for label in labels]
            yield Table(columns, {}, str(file))
