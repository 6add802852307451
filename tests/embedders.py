"""Tiny embedding models as sentence-transformers writes them, and what it computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.models import save, texts, tiny


def embedder(folder: Path, seed: int, *, mode: Any = "mean", dense: bool = True, **options: Any) -> str:
    """Returns the folder of an embedding model with pooling, a dense layer and unit length; `options` are its own."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    place = save(tiny("bert", "body", seed=seed), folder / "encoder")
    pooling = modules.Pooling(16, mode, include_prompt=options.pop("include_prompt", True))
    width = pooling.get_embedding_dimension()
    parts = [modules.Transformer(str(place)), pooling]
    if dense:
        torch.manual_seed(seed)
        parts += [modules.Dense(width, 8, activation_function=nn.Tanh()), modules.LayerNorm(8)]
    model = SentenceTransformer(modules=[*parts, modules.Normalize()], device="cpu", **options)
    model.save(str(folder / "model"), create_model_card=False)
    return str(folder / "model")


def opened(folder: str | Path) -> Any:
    """Returns a folder as sentence-transformers opens it."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def pairs(count: int, *, seed: int = 0) -> dict[str, list[Any]]:
    """Returns pairs of texts with scores from 0 to 5."""
    draw = torch.Generator().manual_seed(seed)
    scores = (torch.rand(count, generator=draw) * 5).tolist()
    return {"sentence1": texts(count, seed=seed), "sentence2": texts(count, seed=seed + 100), "score": scores}
