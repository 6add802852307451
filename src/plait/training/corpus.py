"""Training data of a distillation: token ids packed into one array, and tables of what the teachers said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from plait.data import Examples, encode, length_limit

TYPES = "token_type_ids"


@dataclass(frozen=True)
class Corpus:
    """Tokenised texts, a few bytes a token however many there are; the examples are the chosen `rows`.

    Attributes:
        ids: The tokens of all texts in a row.
        starts: Where each text begins in `ids`, and where the last one ends.
        types: The tokens' types where the student knows them.
        rows: Which texts are examples.
        padding: What pads each input.
        tables: Per name one row per text of what an objective needs; they join each batch under their names.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    types: npt.NDArray[np.uint8] | None
    rows: npt.NDArray[np.int64]
    padding: Mapping[str, int]
    tables: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        """Returns the text of an example; `collate` finds its tokens."""
        return int(self.rows[index])

    @property
    def lengths(self) -> list[int]:
        """Returns the number of tokens of each example."""
        sizes: list[int] = (self.starts[self.rows + 1] - self.starts[self.rows]).tolist()
        return sizes

    def collate(self, features: Sequence[int]) -> dict[str, Tensor]:
        """Returns texts as one batch: model inputs padded to the longest, and the texts' rows of all tables."""
        rows = torch.as_tensor(features)
        return {**self.inputs(features), **{name: table[rows] for name, table in self.tables.items()}}

    def inputs(self, features: Sequence[int]) -> dict[str, Tensor]:
        """Returns the model inputs of texts, padded to the longest."""
        spans = [slice(self.starts[row], self.starts[row + 1]) for row in features]
        longest = max(span.stop - span.start for span in spans)
        found = {
            "input_ids": self._padded(self.ids, spans, longest, "input_ids"),
            "attention_mask": self._padded(None, spans, longest, "attention_mask"),
        }
        if self.types is not None:
            found[TYPES] = self._padded(self.types, spans, longest, TYPES)
        return found

    def _padded(
        self, values: npt.NDArray[Any] | None, spans: Sequence[slice], longest: int, name: str
    ) -> Tensor:
        """Returns the spans of `values`, or as many ones, each padded to `longest`."""
        table = np.full((len(spans), longest), self.padding.get(name, 0), dtype=np.int64)
        for row, span in zip(table, spans, strict=True):
            row[: span.stop - span.start] = 1 if values is None else values[span]
        return torch.from_numpy(table)

    def choose(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Corpus:
        """Returns the same corpus with other examples."""
        return replace(self, rows=np.asarray(rows, dtype=np.int64))

    def batches(self, batch_size: int) -> Iterable[list[int]]:
        """Returns the examples' positions in batches of like length, the longest first."""
        order = np.argsort(-np.asarray(self.lengths), kind="stable").tolist()
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pack(
    chunks: Iterable[Examples],
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    max_length: int,
    tables: Mapping[str, Tensor],
) -> Corpus:
    """Returns texts tokenised for the student, chunk by chunk, with all of them as examples."""
    limit = length_limit(tokenizer, config, max_length)
    ids: list[npt.NDArray[np.int32]] = []
    types: list[npt.NDArray[np.uint8]] = []
    sizes: list[int] = []
    padding: Mapping[str, int] = {}
    for chunk in chunks:
        encoded = encode(chunk.unlabelled(), tokenizer, max_length=limit, config=config, labels=False)
        padding = encoded.padding
        sizes.extend(encoded.lengths)
        ids.append(np.concatenate([np.asarray(f["input_ids"], dtype=np.int32) for f in encoded.features]))
        if TYPES in encoded.features[0]:
            types.append(np.concatenate([np.asarray(f[TYPES], dtype=np.uint8) for f in encoded.features]))
    return Corpus(
        np.concatenate(ids),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate(types) if types else None,
        np.arange(len(sizes)),
        padding,
        tables,
    )
