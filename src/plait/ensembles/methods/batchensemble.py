"""BatchEnsemble: members that scale the inputs and outputs of shared layers."""

from __future__ import annotations

from plait.ensembles.factors import add_factors
from plait.ensembles.method import METHODS, Terms
from plait.ensembles.shapes import Scalar
from plait.registry import Above


@METHODS.register(
    "batchensemble",
    build="factors",
    factors=add_factors,
    limits={"spread": Above(0)},
    paper="arXiv:2002.06715",
    when="Members as cheap to store as one model, at M passes for each prediction.",
)
def batchensemble(task: Scalar, *, spread: float = 0.1) -> Terms:  # noqa: ARG001 (read by whoever builds the model)
    """Returns the members' losses, (1/M) Σ_j task(z_j, y), where member j has weights W ∘ s_j r_jᵀ  (eq. 1).

    Differs from the paper in the start: r and s are 1 plus noise instead of random signs, which would undo what the
    encoder has learnt; and in biases, which are everybody's. All linear layers above the embeddings have them;
    those of DeBERTa that also project positions have none.

    Args:
        task: The members' mean loss.
        spread: The standard deviation of that noise.
    """
    return {"task": task}
