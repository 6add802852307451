"""Calibration: each linear layer fitted to what those of the sources give on their own inputs."""

from __future__ import annotations

import torch

from plait.merging.algebra import solved
from plait.merging.rule import RULES, Law
from plait.merging.rules.average import average
from plait.tensors import Coefficients, Grams, Parameter, Stack


@RULES.register(
    "calibrate",
    paper="arXiv:2605.13030",
    laws={Law.SYMMETRIC},
    limits={"ridge": (0.0, 10.0), "own": (0.0, 1.0)},
    search={"ridge": (1e-3, 10.0), "own": (0.0, 1.0)},
    forward=True,
    when="Texts of every source, and time for one pass through each: close to a refinement in closed form.",
)
def calibrate(
    params: Stack,
    grams: Grams | None,
    crosses: Grams | None,
    weights: Coefficients,
    *,
    ridge: float = 0.3,
    own: float = 1.0,
) -> Parameter:
    """Returns the weight that gives, on what enters it in the merged model, what each source's gives in the source.

    Wᵀ = W̄ᵀ + (Σ_j c_j S_j + ε·mean diag·I)⁻¹ Σ_j c_j (C_j W_jᵀ − S_j W̄ᵀ),  S_j = X̃_jᵀX̃_j,
    C_j = X̃_jᵀ(aX_j + (1 − a)X̃_j),  c_j = λ_j / ‖S_j‖_F;  W̄ the λ-average, W [out, in]

    X̃_j are the inputs of the layer in the model merged so far, X_j those in source j on the same texts: an error made
    below is corrected instead of imitated, which RegMean's targets W_j X̃_j would do. Biases and norms follow from means
    and second moments (`plait.merging.calibration`); embeddings get the λ-average. Statistics come in forward order.

    Differs from the paper in the anchor of the ridge (the λ-average instead of a mixture of a merge and the base), so
    that no base is needed. IterIS (CVPR 2025) solves the same equation with other weights c_j.

    Args:
        params: the parameter of the sources, [n, out, in].
        grams: S_j, [n, in, in], or None.
        crosses: C_j, [n, in, in], or None.
        weights: λ.
        ridge: ε.
        own: a, how much of the target is the source's own input.
    """
    del own  # the products were computed with it
    mean: Parameter = average(params, weights)
    if grams is None or crosses is None:
        return mean
    total, shift = torch.zeros(()), torch.zeros(())
    for parameter, gram, cross, weight in zip(params, grams, crosses, weights.tolist(), strict=True):
        size = float(torch.linalg.matrix_norm(gram.double()))
        counted = weight / size if size > 0 else 0.0
        total = total + gram.double() * counted
        shift = shift + (cross.double() @ parameter.double().T - gram.double() @ mean.double().T) * counted
    fitted: Parameter = mean + solved(total, shift, ridge * float(total.diagonal().mean())).T.to(mean.dtype)
    return fitted
