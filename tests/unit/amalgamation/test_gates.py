"""Gates in bounded memory."""

from __future__ import annotations

import pytest
import torch


def test_mahalanobis_does_not_depend_on_chunks_or_on_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    from plait.amalgamation.gates import mahalanobis as room

    draw = torch.Generator().manual_seed(0)
    features, logits = torch.randn(50, 6, generator=draw).half(), torch.randn(50, 3, generator=draw)
    whole = room.mahalanobis(features, logits)
    monkeypatch.setattr(room, "CHUNK", 7)
    torch.testing.assert_close(room.mahalanobis(features, logits), whole)
    torch.testing.assert_close(room.mahalanobis(features.double(), logits), whole)
