"""Encoders that are replayed: the token that a head reads."""

from __future__ import annotations

import torch

from plait.encoders.replay import read_by_head


def test_a_head_reads_the_last_token_of_a_text() -> None:
    values = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert read_by_head(values, mask).tolist() == [values[0, 1].tolist(), values[1, 3].tolist()]
    assert torch.equal(read_by_head(values[:, 0], mask), values[:, 0])
