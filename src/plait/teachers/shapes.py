"""Shape vocabulary of this room. n texts, k passes, C classes, L layers, d width."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

Logits = Float[Tensor, "n C"]
"""Before the softmax, one row per text."""
Probabilities = Float[Tensor, "n C"]
"""Rows that sum to 1."""
Passes = Float[Tensor, "n k C"]
"""The probabilities of k passes."""
PerText = Float[Tensor, " n"]
"""One number per text."""
PerPass = Float[Tensor, "n k"]
"""One number per text and pass."""
Distributions = Float[Tensor, "*rows C"]
"""Rows that sum to 1, one per text or one per text and pass."""
PerDistribution = Float[Tensor, " *rows"]
"""One number per row."""
Counts = Int[Tensor, " n"]
"""One whole number per text."""
Chosen = Bool[Tensor, " n"]
"""Some of the texts."""
Hashes = Int[Tensor, "n 2"]
"""xxh3-128 of each text as two integers."""
Features = Float[Tensor, "n d"]
"""The classifier's input."""
Layers = Float[Tensor, "n l d"]
"""Per text the mean of each hidden state, embeddings first."""
Tokens = Int[Tensor, " m"]
"""Tokens of all texts in a row."""
Starts = Int[Tensor, " places"]
"""Where each text begins, and where the last one ends."""
Places = Float[Tensor, " V"]
"""One number per entry of a vocabulary."""
