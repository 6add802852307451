"""Vocabularies that have grown: rows of embeddings are matched by token, and what few have is kept from those."""

from __future__ import annotations

import copy
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AddedToken, PretrainedConfig, PreTrainedTokenizerBase

from plait.checkpoints import parameter_names
from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.deltas import columns_of, fingerprint
from plait.checkpoints.headers import Header, Seen, read_entries
from plait.checkpoints.tokenizer_differences import same_files
from plait.checkpoints.tokenizers import Opened, has_tokenizer
from plait.errors import PlaitError, listed

logger = logging.getLogger("plait")
_SHOWN = 5


@dataclass(frozen=True)
class Union:
    """One vocabulary of several: its tokenizer, and how many rows its embeddings have."""

    tokenizer: PreTrainedTokenizerBase
    rows: int

    def places(self, checkpoint: Checkpoint) -> Tensor:
        """Returns for each row of the union the row of a checkpoint's embeddings, −1 where it has none.

        Tokens are found by name. A row that is no token anywhere, as padding leaves it, keeps its number.
        """
        own, rows = checkpoint.tokenizer().get_vocab(), size_of(checkpoint.config)
        taken = set(own.values())
        tokens = {row: token for token, row in self.tokenizer.get_vocab().items()}
        found = torch.full((self.rows,), -1, dtype=torch.long)
        for row in range(self.rows):
            if (token := tokens.get(row)) is not None:
                found[row] = own.get(token, -1)
            elif row < rows and row not in taken:
                found[row] = row
        found[found >= rows] = -1
        return found


class Gathered:
    """The rows of a stored tensor in another order; those that it lacks are the mean of those that others have."""

    origin: Header | None = None

    def __init__(self, held: Header, places: Tensor, lacking: Mapping[int, Tensor]) -> None:
        """Takes the tensor, its row for each of ours (−1 for none), and in float32 the rows that it lacks."""
        self.origin = held
        self._held, self._places, self._lacking = held, places, lacking
        self.fingerprint = fingerprint(places, *lacking.values())

    def fill(self, target: Tensor, start: int, seen: Seen | None = None) -> None:
        """Writes the entries from `start` on; nothing of the file passes in order, so that `seen` takes nothing."""
        del seen
        width, stop = columns_of(self._held.shape), start + target.numel()
        first, last = start // width, -(-stop // width)
        rows = torch.empty(last - first, width)
        for begin, end in runs(self._places[first:last]):
            place = int(self._places[first + begin])
            if place < 0:
                for row in range(begin, end):
                    rows[row] = self._lacking[first + row].reshape(-1)
                continue
            read_entries(self._held, rows[begin:end].view(-1), place * width)
        target.copy_(rows.view(-1)[start - first * width : stop - first * width])


def runs(places: Tensor) -> list[tuple[int, int]]:
    """Returns the stretches of places that follow each other, or that are all lacking."""
    if not len(places):
        return []
    step = places[1:] - places[:-1]
    broken = ~((step == 1) & (places[:-1] >= 0)) & ~((places[1:] < 0) & (places[:-1] < 0))
    cuts = [0, *(torch.nonzero(broken).flatten() + 1).tolist(), len(places)]
    return list(itertools.pairwise(cuts))


def size_of(config: PretrainedConfig) -> int:
    """Returns the rows of the embeddings that a configuration asks for."""
    return int(getattr(config.get_text_config(), "vocab_size", 0) or 0)


def matched(sources: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
    """Returns sources whose embeddings have one order of rows, and one tokenizer: the union of theirs.

    Sources that agree, and those whose tokenizers are different ones rather than grown, come back as they are: the
    comparison of checkpoints names what differs.
    """
    if len(sources) < 2 or not all(has_tokenizer(source.tokenizer_folder) for source in sources):
        return tuple(sources)
    first = sources[0]
    if all(size_of(s.config) == size_of(first.config) and same_files(first, s) for s in sources[1:]):
        return tuple(sources)
    try:
        found = _union(sources)
    except PlaitError:  # whoever opens the tokenizers says so
        return tuple(sources)
    return tuple(sources) if found is None else _in_union(sources, found)


def fitted(base: Checkpoint | None, sources: Sequence[Checkpoint]) -> Checkpoint | None:
    """Returns a base with the rows that the sources have; those that it lacks are the mean of the sources' own.

    What it has beyond them, such as padding, plays no part.
    """
    if base is None or base.original is not None or not has_tokenizer(base.tokenizer_folder):
        return base
    originals = [source.original or source for source in sources]
    if not all(has_tokenizer(source.tokenizer_folder) for source in originals):
        return base
    union = Union(sources[0].tokenizer(), size_of(sources[0].config))
    if size_of(base.config) == union.rows and same_files(base, sources[0]) and sources[0].original is None:
        return base
    own = base.tokenizer()
    if size_of(base.config) == union.rows and own.get_vocab() == union.tokenizer.get_vocab():
        return base
    root = _root(own)
    if root is None or root != _root(union.tokenizer):
        return base
    having = [(source, union.places(source)) for source in originals]
    return _matched(base, union, [*having, (base, union.places(base))])


def _union(sources: Sequence[Checkpoint]) -> Union | None:
    """Returns the union of vocabularies that grew from one; None where none has grown, or they are different ones."""
    tokenizers = [source.tokenizer() for source in sources]
    roots = [_root(tokenizer) for tokenizer in tokenizers]
    if roots[0] is None or any(root != roots[0] for root in roots[1:]):
        return None
    rows = [size_of(source.config) for source in sources]
    if any(max(t.get_vocab().values(), default=0) >= count for t, count in zip(tokenizers, rows, strict=True)):
        return None
    grown = copy.deepcopy(tokenizers[0])
    known = set(grown.get_vocab())
    added: dict[str, AddedToken] = {}
    for tokenizer in tokenizers[1:]:
        for _, token in sorted(tokenizer.added_tokens_decoder.items()):
            if str(token) not in known:
                added.setdefault(str(token), token)
    if not added and len(set(rows)) == 1:
        return None
    grown.add_tokens(list(added.values()))
    _tell(sources, rows, list(added))
    return Union(grown, max([*rows, max(grown.get_vocab().values()) + 1]))


def _tell(sources: Sequence[Checkpoint], rows: Sequence[int], added: Sequence[str]) -> None:
    said = ", ".join(f"{source.name}: {count}" for source, count in zip(sources, rows, strict=True))
    new = f"; the result has the tokens of all, {listed(added, _SHOWN)} besides those of {sources[0].name}"
    more = new if added else ""
    logger.warning("vocabularies of different sizes (%s): rows are matched by token%s", said, more)


def _root(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Returns what a tokenizer is but for the tokens that were added to it; None for one without such a form."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    stages = json.loads(backend.to_str())
    return {key: stages.get(key) for key in ("model", "normalizer", "pre_tokenizer", "post_processor", "decoder")}


def _in_union(sources: Sequence[Checkpoint], union: Union) -> tuple[Checkpoint, ...]:
    every = [(source, union.places(source)) for source in sources]
    return tuple(_matched(source, union, every) for source in sources)


def _matched(checkpoint: Checkpoint, union: Union, every: Sequence[tuple[Checkpoint, Tensor]]) -> Checkpoint:
    """Returns a checkpoint whose rows are those of the union."""
    places = next(found for source, found in every if source is checkpoint)
    config = copy.deepcopy(checkpoint.config)
    config.get_text_config().vocab_size = union.rows
    headers = dict(checkpoint.headers)
    for name, stored in _of_words(checkpoint).items():
        held = headers[stored]
        lacking = _lacking(name, places, every, held)
        shape = (union.rows, *held.shape[1:])
        headers[stored] = replace(held, shape=shape, derived=Gathered(held, places, lacking))
    return replace(
        checkpoint, config=config, headers=headers, assembled=True, original=checkpoint,
        union_tokenizer=Opened.of(union.tokenizer),
    )  # fmt: skip


def _of_words(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns the parameters with a row per word, found by asking the class for one word more."""
    stored = {**checkpoint.body, **checkpoint.head}
    cls = checkpoint.language_class or checkpoint.model_class
    found = []
    for more in (0, 1):
        config = copy.deepcopy(checkpoint.config)
        config.get_text_config().vocab_size += more
        built = parameter_names.skeleton(cls, config, str(checkpoint.folder))
        found.append({name: tuple(p.shape) for name, p in built.named_parameters(remove_duplicate=False)})
    names = {name for name, shape in found[0].items() if found[1][name] != shape}
    prefix = f"{checkpoint.prefix}."
    return {name: file for name, file in stored.items() if name in names or f"{prefix}{name}" in names}


def _lacking(
    name: str, places: Tensor, every: Sequence[tuple[Checkpoint, Tensor]], held: Header
) -> dict[int, Tensor]:
    """Returns the rows that a checkpoint lacks: the mean of what the others have, or of nothing."""
    found = {}
    for row in torch.nonzero(places < 0).flatten().tolist():
        parts = [_row(other, name, int(where[row])) for other, where in every if int(where[row]) >= 0]
        having = [part for part in parts if part is not None]
        found[row] = torch.stack(having).mean(0) if having else torch.zeros(columns_of(held.shape))
    return found


def _row(checkpoint: Checkpoint, name: str, place: int) -> Tensor | None:
    stored = checkpoint.body.get(name) or checkpoint.head.get(name)
    if stored is None:
        return None
    header = checkpoint.headers[stored]
    row = torch.empty(columns_of(header.shape))
    read_entries(header, row, place * len(row))
    return row
