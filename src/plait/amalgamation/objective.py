"""What an objective is: a pure function of a batch whose named terms, added up, are what the student minimises.

Positional parameters are inputs, supplied by name from `INPUTS`; keyword-only ones are options. The facts of an
objective are its `paper`, what the store must `keep` for it (`none`, `features` or `layers`), and, where it trains
layers of its own, the `adapters` that `adapters.build` makes for it; `limits` bound its options.

Everything is computed in float32 whatever precision the student runs in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plait.registry import Entry, Registry

Terms = Mapping[str, Tensor]
AmalgamationObjective = Callable[..., Terms]
ObjectiveEntry = Entry[AmalgamationObjective]
TEMPERATURES = (0.01, 100.0)
OBJECTIVES: Registry[AmalgamationObjective] = Registry(
    "objective", "plait.amalgamation.objectives", plugins="plait.objectives", keep="none"
)

INPUTS = (
    "student_logits", "target", "weight", "teacher_logits", "columns", "student_features", "teacher_features",
    "student_layers", "teacher_layers", "adapters",
)  # fmt: skip
"""All that an objective may ask for, of a batch of b texts and a union of C labels.

student_logits, target: [b, C]. weight: [b], how much each text counts. teacher_logits: per teacher [b, c_i].
columns: per teacher the positions of its labels in the union. student_features, teacher_features: what the last layer
of the student and of each teacher reads, [b, d]. student_layers, teacher_layers: the mean over the tokens of the
embeddings and of each layer's output, [b, L + 1, d]. adapters: the module that `adapters.build` made.
"""

Logits = Float[Tensor, "b C"]
"""One score per text and label of the union."""
Target = Float[Tensor, "b C"]
"""One distribution over the union per text."""
Weights = Float[Tensor, " b"]
"""How much each text counts."""
Features = Float[Tensor, "b d"]
"""One vector per text."""
Layers = Float[Tensor, "b l d"]
"""One vector per text, for the embeddings and each layer."""
TeacherFeatures = Float[Tensor, "b _"]
"""Of one teacher, whose width is its own."""
TeacherLayers = Float[Tensor, "b _ _"]
"""Of one teacher, whose depth and width are its own."""
Output = Float[Tensor, "b _"]
"""One score per text and label of one teacher, who has labels of its own."""
Outputs = Sequence[Output]
"""Per teacher its logits."""
Places = Int[Tensor, " _"]
"""Positions of one teacher's labels in the union."""
Columns = Sequence[Places]
"""Per teacher the positions of its labels in the union."""


def divergence(target: Target, logits: Logits) -> Weights:
    """Returns KL(p ‖ softmax z) = Σ_c p_c (log p_c − log softmax(z)_c) per text in float32, with 0 log 0 = 0."""
    goal = target.float()
    found: Tensor = -torch.special.entr(goal).sum(-1) - (goal * torch.log_softmax(logits.float(), -1)).sum(-1)
    return found


def gathered(probabilities: Tensor, columns: Tensor, width: int) -> Tensor:
    """Returns probabilities at their places among `width` labels, adding up those of one place, 0 elsewhere."""
    empty = probabilities.new_zeros(*probabilities.shape[:-1], width)
    return empty.index_add(-1, columns.to(probabilities.device), probabilities)
