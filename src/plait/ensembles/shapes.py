"""Shape vocabulary of this package: M members, B examples, T tokens, H width, C classes, N rows that count."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

MemberLogits = Float[Tensor, "M *rows C"]
"""Logits of all members, members first: [M, B, C], [M, B, T, C] for tokens, [M, B] for a regression."""
Values = Float[Tensor, "*rows C"]
"""Logits, means or probabilities of some rows."""
PerRow = Float[Tensor, " *rows"]
"""One number per example or token."""
Scalar = Float[Tensor, ""]
"""A loss, or a term of one."""
Hidden = Float[Tensor, "*rows T H"]
"""Hidden states after replication, [M, B, T, H] or [M·B, T, H], the members one after another."""
Ids = Int[Tensor, "B T"]
"""Rows of the embedding table."""
Mask = Bool[Tensor, "*rows"] | Int[Tensor, "*rows"]
"""True, or 1 as tokenizers write it, where something counts."""
Counted = Float[Tensor, "M N K"]
"""Logits of all members for the rows that count; a regression has its last axis here, K = 1."""
CountedValues = Float[Tensor, "N K"]
"""Logits or probabilities for the rows that count."""
PerCounted = Float[Tensor, " N"]
"""One number per row that counts."""
