"""The order in which training sees its examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

GROUPED = 50
"""Batches' worth of shuffled examples that are sorted by length together."""


class Sampler(torch.utils.data.Sampler[int]):
    """Shuffled examples, sorted by length within groups, so that little is padded.

    The order depends on nothing but the seed and the epoch: a resumed run repeats the uninterrupted one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """Prepares the order of epoch 0."""
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order comes next; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random_order = np.random.default_rng((self.seed, self.epoch))
        rows = random_order.permutation(len(self.lengths)).tolist()
        size = self.batch_size * GROUPED
        groups = [
            sorted(rows[i : i + size], key=lambda row: -self.lengths[row]) for i in range(0, len(rows), size)
        ]
        cut = [g[i : i + self.batch_size] for g in groups for i in range(0, len(g), self.batch_size)]
        # A short batch stays last: the loader would cut all later batches elsewhere.
        full, short = (
            [b for b in cut if len(b) == self.batch_size],
            [b for b in cut if len(b) < self.batch_size],
        )
        for batch in [*(full[i] for i in random_order.permutation(len(full))), *short]:
            yield from batch
