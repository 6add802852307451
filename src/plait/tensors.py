"""Shape vocabulary: jaxtyping aliases used in signatures. n sources, N examples, L layers, h heads, I neurons."""

from __future__ import annotations

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
