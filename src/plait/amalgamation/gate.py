"""What a gate is: a pure function of one teacher's outputs that says on which texts the teacher is competent.

Positional parameters are inputs, supplied by name from `INPUTS`; keyword-only ones are options. The facts of a gate
are its `paper`, the `temperature` that a soft choice between teachers takes by default, whether it needs Monte Carlo
`passes`, and what the store must `keep` for it (`none`, `features` or `layers`); `limits` bound its options.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plait.registry import Entry, Registry

Gate = Callable[..., Tensor]
GateEntry = Entry[Gate]
GATES: Registry[Gate] = Registry(
    "gate", "plait.amalgamation.gates", plugins="plait.gates", temperature=1.0, passes=False, keep="none"
)

INPUTS = (
    "logits", "mean", "expected_entropy", "features", "labels", "known", "base", "near", "drift", "tokens", "starts",
    "response", "layers",
)  # fmt: skip
"""All that a gate may ask for, of one teacher with c labels on n texts.

logits: one deterministic pass. mean: the Monte Carlo mean of the passes' probabilities. expected_entropy: the mean of
the passes' entropies in nats. features: what the teacher's last layer reads. labels: true labels as positions in the
union, −1 where unknown. known: which labels of the union the teacher has. base: the features of the encoder that was
not fine-tuned. near: in these, the other texts nearest to each text. drift: how far the embedding of each token of the
teacher's vocabulary has moved from the base's. tokens: those of all texts in a row; starts: where each text begins.
layers: per layer the mean over the tokens of the teacher's states, embeddings first. response: per linear layer of the
encoder, how much of its output fine-tuning has changed, the logarithm of a share.
"""

Logits = Float[Tensor, "n c"]
"""One score per text and label."""
Probabilities = Float[Tensor, "n c"]
"""One distribution over the labels per text."""
PerText = Float[Tensor, " n"]
"""One number per text."""
Features = Float[Tensor, "n d"]
"""One vector per text."""
Positions = Int[Tensor, " n"]
"""One position in the union of labels per text, −1 where unknown."""
Known = Bool[Tensor, " C"]
"""Which labels of the union a teacher has."""
Near = Int[Tensor, "n k"]
"""Other texts, the nearest first."""
Drift = Float[Tensor, " v"]
"""One number per token."""
Tokens = Int[Tensor, " m"]
"""Tokens of all texts in a row."""
Layers = Float[Tensor, "n l d"]
"""One vector per text, for the embeddings and each layer."""
Response = Float[Tensor, "n l"]
"""One number per text and layer."""
Starts = Int[Tensor, " places"]
"""Where each text begins, and where the last one ends: one place more than texts."""


def certainty(entropies: PerText, labels: int) -> PerText:
    """Returns 1 − H / log C, between 0 (every label alike) and 1 (one label for sure), in float64.

    In float32 all teachers that are surer than 1 − 6e-8 would be equally sure, and the first would teach.
    """
    return (1 - entropies.double() / math.log(max(labels, 2))).clamp(0, 1)


def entropy_of(probabilities: Probabilities) -> PerText:
    """Returns H = −Σ_c p_c log p_c in nats and float64, with 0 log 0 = 0."""
    found: Tensor = torch.special.entr(probabilities.double()).sum(-1)
    return found
