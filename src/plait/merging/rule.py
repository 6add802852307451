"""What a merge rule is: a pure function of one parameter, registered with the laws it claims to obey.

Positional parameters are inputs, supplied by name from `INPUTS`; keyword-only ones are options and become recipe
fields. The contract tests verify every claimed law, so a law here is a promise, not a remark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from torch import Tensor

from plait.registry import Entry, Registry
from plait.tensors import Coefficients, Parameter, Stack

Rule = Callable[..., Tensor]
RuleEntry = Entry[Rule]
RULES: Registry[Rule] = Registry("method", "plait.merging.rules", plugins="plait.rules")

INPUTS = (
    "params",
    "weights",
    "base",
    "importances",
    "typical",
    "grams",
    "crosses",
    "thresholds",
    "ceilings",
    "draws",
    "depth",
)
"""All that a rule may ask for.

params: the parameter of n sources, stacked. weights: λ per source. base: the parameter they started from.
importances: per source, broadcastable to the parameter. typical: per source the mean importance of the parameter.
grams: per source the Gram matrix of the layer's input, or None where there is none. thresholds: per source the least
|parameter − base| that survives trimming. ceilings: per source the least |parameter − base| that is an outlier. draws:
per source uniform numbers in [0, 1). depth: 0 for what the first layer or something before it holds, 1 for the last.

A rule with the fact `elsewhere` is given nothing but the linear weights of layers, [out, in]; for all other parameters
the rule that the fact names is taken, with those options that both have.
"""


class Law(StrEnum):
    """What a rule claims for all inputs."""

    IDEMPOTENT = "equal sources come back unchanged"
    SYMMETRIC = "the order of the sources does not matter"
    BOUNDED = "every entry lies between the least and the greatest of the sources"
    ELEMENTWISE = (
        "an entry of the result depends on that entry of the inputs alone: chunks may be merged one by one"
    )
    ROWWISE = "a row of the result depends on that row of the inputs alone: rows may be merged some at a time"
    ANCHORED = "sources that equal the base give the base"
    SCALE_FREE = "one factor on all importances changes nothing"
    PROPAGATES = "an entry that is not finite in any source is not finite in the result"


def laws(entry: RuleEntry) -> frozenset[Law]:
    """Returns the laws that a registered rule claims."""
    return frozenset(entry.facts.get("laws", ()))


def normalized(weights: Tensor) -> Tensor:
    """Returns weights that sum to 1: λ_j / Σ λ."""
    return weights / weights.sum()


def task_vectors(params: Stack, base: Parameter, weights: Coefficients) -> tuple[list[Tensor], list[float]]:
    """Returns τ_j = θ_j − θ_0 in float64 and λ_j, of those sources whose λ_j is not 0.

    Differences of float32 numbers are exact in float64; products and inverses of τ need the room.
    """
    origin = base.double()
    having = [(p.double() - origin, w) for p, w in zip(params, weights.tolist(), strict=True) if w > 0]
    return [change for change, _ in having], [weight for _, weight in having]


def weighted_sum(changes: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Returns Σ_j λ_j τ_j in new memory."""
    total = changes[0] * shares[0]
    for change, share in zip(changes[1:], shares[1:], strict=True):
        total.add_(change, alpha=share)
    return total
