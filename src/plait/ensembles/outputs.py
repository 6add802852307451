"""What logits say, by problem type: each type is one exponential family, and its formulas are the same three.

A(z) is the log-partition function and μ(z) = ∇A(z) the mean of the label: softmax for one class of C, σ per label for
several labels, z itself for a number with Gaussian noise of variance 1.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plait.data import ProblemType
from plait.ensembles.shapes import MemberLogits, PerRow, Values
from plait.errors import RecipeError, did_you_mean

SINGLE: ProblemType = "single_label_classification"


def at_least_float32(values: Tensor) -> Tensor:
    """Returns the values in float32, or in float64 where they are: half precision cannot tell members apart."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def read(logits: Tensor, problem: ProblemType) -> MemberLogits:
    """Returns logits of members as [M, …, C] in at least float32; a regression may leave C out.

    Raises:
        RecipeError: When the problem type is unknown.
    """
    if problem not in get_args(ProblemType):
        raise RecipeError(f"unknown problem type {problem!r}{did_you_mean(problem, get_args(ProblemType))}")
    values = at_least_float32(logits)
    return values.unsqueeze(-1) if problem == "regression" and values.dim() == 2 else values


def means(z: Values, problem: ProblemType) -> Values:
    """Returns μ(z): softmax(z), σ(z) or z."""
    if problem == "regression":
        return z
    return z.sigmoid() if problem == "multi_label_classification" else z.softmax(-1)


def divergence(first: Values, second: Values, problem: ProblemType) -> PerRow:
    """Returns KL(p‖q) of the distributions that two logits define, per row, summed over labels.

    Σ_c p_c (log p_c − log q_c), the same for yes and no of every label, or ½(z − z′)².
    """
    if problem == "regression":
        return (first - second).square().sum(-1) / 2
    if problem == "multi_label_classification":
        yes: Tensor = first.sigmoid() * (logsigmoid(first) - logsigmoid(second))
        no = (-first).sigmoid() * (logsigmoid(-first) - logsigmoid(-second))
        return (yes + no).sum(-1)
    logs: Tensor = first.log_softmax(-1)
    terms: Tensor = logs.exp() * (logs - second.log_softmax(-1))
    return terms.sum(-1)


def entropy(probabilities: Values, problem: ProblemType) -> PerRow:
    """Returns −Σ_c p_c log p_c per row, or the entropies of yes and no summed over labels; nats.

    Raises:
        RecipeError: For a regression, whose members all have the same entropy.
    """
    if problem == "regression":
        raise RecipeError("a regression has no entropy over labels; look at the members' variance instead")
    counts: Tensor = torch.special.entr(probabilities)
    if problem == "multi_label_classification":
        counts = counts + torch.special.entr(1 - probabilities)
    return counts.sum(-1)
