"""RegMean: each linear layer fitted to the outputs of all sources on their own inputs."""

from __future__ import annotations

import torch

from plait.merging.rule import RULES, Law
from plait.merging.rules.average import average
from plait.tensors import Coefficients, Grams, Parameter, Stack


@RULES.register(
    "regmean",
    paper="arXiv:2212.09849",
    laws={Law.IDEMPOTENT, Law.SYMMETRIC, Law.PROPAGATES},
    limits={"alpha": (0.0, 1.0), "ridge": (0.0, 1.0)},
)
def regmean(
    params: Stack, grams: Grams | None, weights: Coefficients, *, alpha: float = 0.9, ridge: float = 1e-6
) -> Parameter:
    """Returns the weight whose outputs are nearest, in the least-squares sense, to those of every source.

    Wᵀ = (Σ_j λ_j G̃_j)⁻¹ Σ_j λ_j G̃_j W_jᵀ,  G̃ = α G + (1 − α) diag G   (eq. 2), W [out, in] as torch stores it

    Parameters without a Gram (biases, embeddings, norms) get the λ-average.

    Differs from the paper in a small ridge ε·mean(diag Σ λ_j G̃_j): it pulls directions that no input reached towards
    the λ-average instead of leaving them to rounding, so that a Gram matrix without full rank is no trouble.

    Args:
        params: the parameter of the sources.
        grams: XᵀX / tokens of each source's input to this layer, or None.
        weights: λ.
        alpha: how much of the off-diagonal counts.
        ridge: ε.
    """
    mean: Parameter = average(params, weights)
    if grams is None:
        return mean
    # Gram matrices are close to singular and the answer is their quotient: float32 would lose it. Fitting the
    # difference to the mean is the same equation, with the ridge pulling towards the mean.
    total, shift = torch.zeros(()), torch.zeros(())
    for parameter, gram, weight in zip(params, grams, weights.tolist(), strict=True):
        kept = gram.double() * (alpha * weight)
        kept.diagonal().copy_(gram.diagonal().double() * weight)
        total = total + kept
        shift = shift + kept @ (parameter - mean).double().T
    total.diagonal().add_(max(ridge * float(total.diagonal().mean()), torch.finfo(torch.float64).tiny))
    fitted: Parameter = mean + torch.linalg.solve(total, shift).T.to(mean.dtype)
    return fitted
