"""Shape vocabulary of this package: B examples, T tokens, R random variables of C values, K cotangent columns."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

Mask = Bool[Tensor, "B T"]
"""True at real tokens."""
Ids = Int[Tensor, "B T"]
"""Rows of an embedding table."""
Inputs = Float[Tensor, "B T i"]
"""What enters a linear layer."""
Grads = Float[Tensor, "B T o"]
"""The gradient of what leaves it."""
Examples = Float[Tensor, "B ..."]
"""One tensor per example."""
Matrix = Float[Tensor, "o i"]
"""A weight as torch stores it."""
Blocks = Float[Tensor, "B R C"]
"""The logits of any head, or their gradient."""
Rows = Float[Tensor, "R C"]
"""The logits of one example."""
Columns = Float[Tensor, "K R C"]
"""Cotangents of one example."""
Roots = Float[Tensor, "R C K"]
"""Per variable a square root of its covariance."""
