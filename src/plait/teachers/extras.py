"""What a posterior store keeps of its texts beside what the teachers said, computed once, shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plait import progress
from plait.checkpoints.checkpoint import Checkpoint
from plait.data import Examples, Texts, collate, encode, length_limit, plan
from plait.encoders.modes import accelerator
from plait.errors import DataError, SourceError
from plait.teachers.files import read_facts, read_shard, write_shard
from plait.teachers.mc_dropout import half, means
from plait.teachers.store import Store, shard_key, texts_file

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
    recorded = read_facts(file)
    wanted = {**facts, "texts": shard_key(store.folder, number)}
    return all(recorded.get(name) == value for name, value in wanted.items())


def _compute(  # noqa: PLR0917 - a store's shards and all that fills them
    store: Store, texts: Texts, files: Sequence[Path], pending: Sequence[int], facts: Mapping[str, Any], reader: Reader
) -> None:
    wanted = set(pending)
    with progress.task(f"reading for {files[0].parent.parent.name}", store.count) as tick:
        for number, (examples, hashes_of) in enumerate(texts.hashed(store.record.chunk)):
            if number not in wanted:
                continue
            hashes = read_shard(texts_file(store.folder, number))[0]["hashes"]
            if not torch.equal(torch.from_numpy(hashes_of()), hashes):
                raise DataError(f"{texts.source}: changed while it was read; leave it alone, and try again")
            key = shard_key(store.folder, number)
            write_shard(files[number], {"values": reader(examples, tick)}, {**facts, "texts": key})


def base_states(store: Store, texts: Texts, base: Checkpoint, max_length: int, batch_size: int = 64) -> Beside:
    """Returns per text the mean over the tokens of the base's last hidden state, in half precision.

    The mean, and not the first token: in an encoder without a task the first token stands for nothing.

    Args:
        store: of these texts; the states stay in it.
        texts: the texts.
        base: any encoder; a head that it may have is not asked.
        max_length: tokens that are read of each text.
        batch_size: texts at a time.

    Raises:
        DataError: a damaged shard, or texts that have changed.
        SourceError: states that are not finite.
    """
    facts = {"base": base.digest, "max_length": max_length}

    @contextmanager
    def opened() -> Iterator[Reader]:
        model, tokenizer = encoder(base), base.tokenizer()
        limit = length_limit(tokenizer, model.config, max_length)

        def read(examples: Examples, tick: progress.Tick) -> Tensor:
            encoded = encode(examples, tokenizer, max_length=limit, config=model.config, labels=False)
            by_row: dict[int, Tensor] = {}
            with torch.inference_mode():
                for rows in plan(encoded, batch_size):
                    batch = collate([encoded.features[row] for row in rows], encoded.padding)
                    inputs = {name: value.to(model.device) for name, value in batch.items()}
                    states = half(means([model(**inputs)[0]], inputs["attention_mask"])[:, 0]).cpu()
                    by_row.update(zip(rows, states, strict=True))
                    tick(len(rows))
            return _finite(torch.stack([by_row[row] for row in range(len(encoded))]), base)

        yield read

    return kept_beside(store, texts, f"base/{base.digest[:16]}", facts, opened)


def encoder(checkpoint: Checkpoint) -> PreTrainedModel:
    """Returns a checkpoint's encoder without its head, in memory, in float32, on the accelerator where there is one."""
    model: PreTrainedModel = checkpoint.model(dtype=torch.float32)
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    nn.Module.to(body, accelerator())
    return body


def _finite(states: Tensor, base: Checkpoint) -> Tensor:
    if not bool(states.isfinite().all()):
        raise SourceError(f"base {base.origin}: gives states that are NaN or Inf; name another with --base")
    return states
