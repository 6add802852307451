"""Shape vocabulary: jaxtyping aliases used in signatures; and the checksum of tensors in a file.

n sources, N examples, L layers, h heads, I neurons.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor

Parameter = Float[Tensor, "..."]
"""One parameter, any shape (a flat chunk of one for elementwise rules)."""
Stack = Float[Tensor, "n ..."]
"""The same parameter of n sources, stacked on the first axis, float32."""
Coefficients = Float[Tensor, " n"]
"""One weight λ per source."""
Grams = Float[Tensor, "n i i"]
"""Per source the Gram matrix XᵀX / n_tokens of a Linear's input."""
HeadScores = Float[Tensor, "L h"]
"""One number per layer and attention head."""
NeuronScores = Float[Tensor, "L I"]
"""One number per layer and FFN neuron."""
Labels = Int[Tensor, " N"]
"""Class indices."""


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Returns a hash over names and values; a flipped bit in a file shows in nothing else."""
    total = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
