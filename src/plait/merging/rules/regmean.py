"""RegMean: each linear layer fitted to the outputs of all sources on their own inputs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from plait.merging.algebra import solved
from plait.merging.rule import RULES, Law
from plait.merging.rules.average import average
from plait.tensors import Coefficients, Grams, Parameter, Stack


@RULES.register(
    "regmean",
    paper="arXiv:2212.09849",
    laws={Law.IDEMPOTENT, Law.SYMMETRIC, Law.PROPAGATES},
    limits={"alpha": (0.0, 1.0), "ridge": (0.0, 10.0)},
    search={"alpha": (0.0, 1.0), "ridge": (1e-4, 10.0)},
    when="Unlabelled texts of every source and no base.",
)
def regmean(
    params: Stack,
    grams: Grams | None,
    weights: Coefficients,
    *,
    alpha: float = 1.0,
    ridge: float = 0.01,
    scale_grams: Literal["none", "trace"] = "trace",
) -> Parameter:
    """Returns the weight whose outputs are nearest, in the least-squares sense, to those of every source.

    Wᵀ = (Σ_j λ_j G̃_j)⁻¹ Σ_j λ_j G̃_j W_jᵀ,  G̃ = α G + (1 − α) diag G   (eq. 2), W [out, in] as torch stores it

    Parameters without a Gram (biases, embeddings, norms) get the λ-average.

    Differs from the paper in a ridge ε·mean(diag Σ λ_j G̃_j): it pulls directions that no input reached towards the
    λ-average instead of leaving them to rounding, so that a Gram matrix without full rank is no trouble. With ε = 0 the
    equation is solved as published, and where it has many solutions the one nearest to the λ-average is taken. And in
    the choice of Gram matrices of equal trace: those of sources whose inputs are larger then count no more than others.

    Args:
        params: the parameter of the sources.
        grams: XᵀX / tokens of each source's input to this layer, or None.
        weights: λ.
        alpha: how much of the off-diagonal counts.
        ridge: ε.
        scale_grams: `trace` divides each G by its trace; `none`, as published, takes it as it is.
    """
    mean: Parameter = average(params, weights)
    if grams is None:
        return mean
    # Gram matrices are close to singular and the answer is their quotient: float32 would lose it. Fitting the
    # difference to the mean is the same equation, with the ridge pulling towards the mean.
    total, shift = torch.zeros(()), torch.zeros(())
    for parameter, gram, weight in zip(params, grams, weights.tolist(), strict=True):
        counted = weight * _scale(gram, scale_grams)
        kept = gram.double() * (alpha * counted)
        kept.diagonal().copy_(gram.diagonal().double() * counted)
        total = total + kept
        shift = shift + kept @ (parameter - mean).double().T
    fitted: Parameter = mean + solved(total, shift, ridge * float(total.diagonal().mean())).T.to(mean.dtype)
    return fitted


def _scale(gram: Tensor, scale_grams: str) -> float:
    trace = float(gram.diagonal().double().sum()) if scale_grams == "trace" else 1.0
    return 1.0 / trace if trace > 0 else 0.0
