"""How much the members differ, and what that is worth: numbers to report, in float64, nothing to train on.

Rows are examples, or the tokens that count (`rows` picks them). With the log-likelihood as the loss,
loss(mean logits) = mean loss of the members − D: what an ensemble gains is how much its members disagree.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from plait.data import ProblemType
from plait.ensembles.consistency import ensemble
from plait.ensembles.divergences import SINGLE, divergence, entropy, means, read
from plait.ensembles.shapes import Counted, CountedValues, Mask, MemberLogits, PerCounted
from plait.errors import DataError


def rows(logits: MemberLogits, problem: ProblemType = SINGLE, mask: Mask | None = None) -> Counted:
    """Returns the logits [M, N, C] of the rows that count, in float64."""
    z = read(logits, problem).double()
    return z.flatten(1, -2) if mask is None else z[:, mask.bool()]


def mean_logits(logits: MemberLogits, problem: ProblemType = SINGLE, mask: Mask | None = None) -> CountedValues:
    """Returns z̄ [N, C], what the ensemble predicts: softmax(z̄) is the geometric mean of the members."""
    return rows(logits, problem, mask).mean(0)


def mean_probabilities(
    logits: MemberLogits, problem: ProblemType = SINGLE, mask: Mask | None = None
) -> CountedValues:
    """Returns (1/M) Σ_j μ(z_j) [N, C], the arithmetic mean of what the members predict."""
    return means(rows(logits, problem, mask), problem).mean(0)


def gain(logits: MemberLogits, problem: ProblemType = SINGLE, mask: Mask | None = None) -> PerCounted:
    """Returns D = (1/M) Σ_j KL(softmax(z̄) ‖ p_j) ≥ 0 per row: the members' mean loss less the ensemble's.

    The loss is −log p(y), summed over labels where there are several. For a regression it is ½(z − y)², and D half
    the population variance: mean squared errors differ by 2D.
    """
    z = rows(logits, problem, mask)
    return divergence(z.mean(0).expand_as(z), z, problem).mean(0)


def mutual_information(
    logits: MemberLogits, problem: ProblemType = SINGLE, mask: Mask | None = None
) -> PerCounted:
    """Returns I = H(p̄) − (1/M) Σ_j H(p_j) ≥ 0 per row, in nats: what knowing the member would tell of the label.

    The disagreement of BALD (Houlsby et al. 2011, arXiv:1112.5745, eq. 2) with members in place of the posterior;
    labels one by one, where there are several, are summed.
    """
    p = means(rows(logits, problem, mask), problem)
    # The mean of equal numbers may round below them.
    return (entropy(p.mean(0), problem) - entropy(p, problem).mean(0)).clamp(min=0)


def disagreement(logits: MemberLogits, problem: ProblemType = SINGLE, mask: Mask | None = None) -> PerCounted:
    """Returns per row the share of pairs of members that decide differently; of labels too, where several."""
    z = rows(logits, problem, mask)
    choices = z > 0 if problem == "multi_label_classification" else z.argmax(-1, keepdim=True)
    pairs = [(first != second).double().mean(-1) for first, second in combinations(choices, 2)]
    return torch.stack(pairs).mean(0) if pairs else z.new_zeros(z.shape[1])


def true_probability_variance(
    logits: MemberLogits, labels: Tensor, problem: ProblemType = SINGLE, mask: Mask | None = None
) -> PerCounted:
    """Returns per row the population variance over members of the probability of the true label (mean over labels)."""
    p, truth = _with_labels(logits, labels, problem, mask)
    p = means(p, problem)
    if problem == "multi_label_classification":
        return torch.where(truth > 0.5, p, 1 - p).var(0, correction=0).mean(-1)
    return p.gather(-1, truth.expand(p.shape[0], -1).unsqueeze(-1)).squeeze(-1).var(0, correction=0)


def oracle_accuracy(
    logits: MemberLogits, labels: Tensor, problem: ProblemType = SINGLE, mask: Mask | None = None
) -> float:
    """Returns the share of rows that at least one member gets right (all labels of the row, where several)."""
    z, truth = _with_labels(logits, labels, problem, mask)
    several = problem == "multi_label_classification"
    right = ((z > 0) == (truth > 0.5)).all(-1) if several else z.argmax(-1) == truth
    return float(right.any(0).double().mean())


def diversity(
    logits: MemberLogits,
    labels: Tensor | None = None,
    problem: ProblemType = SINGLE,
    mask: Mask | None = None,
) -> dict[str, float]:
    """Returns means over rows of all the above by name; a regression has R and D alone.

    Args:
        logits: of all members.
        labels: as the task has them; without, what needs them is left out.
        problem: what the logits mean.
        mask: the rows that count, [B] or [B, T]; all by default.
    """
    given = (logits, problem, mask)
    found = {
        "consistency": float(ensemble(rows(*given), problem)),
        "diversity": float(gain(*given).mean()),
    }
    if problem == "regression":
        return found
    found["disagreement"] = float(disagreement(*given).mean())
    found["mutual_information"] = float(mutual_information(*given).mean())
    if labels is not None:
        variance = true_probability_variance(logits, labels, problem, mask)
        found["true_probability_variance"] = float(variance.mean())
        found["oracle_accuracy"] = oracle_accuracy(logits, labels, problem, mask)
    return found


def _with_labels(
    logits: MemberLogits, labels: Tensor, problem: ProblemType, mask: Mask | None
) -> tuple[Counted, Tensor]:
    """Returns the rows that count with their labels, flattened alike."""
    if problem == "regression":
        raise DataError("a regression has no true class; expected class or yes-or-no labels")
    z = rows(logits, problem, mask)
    truth = labels if mask is None else labels[mask.bool()]
    wanted = z.shape[1:] if problem == "multi_label_classification" else z.shape[1:2]
    truth = truth.to(z.device).reshape(-1, *wanted[1:])
    if truth.shape != wanted:
        raise DataError(f"{len(truth)} rows of labels for {z.shape[1]} rows of logits; expected one for each")
    if problem == SINGLE and bool(((truth < 0) | (truth >= z.shape[-1])).any()):
        raise DataError(f"labels outside 0 to {z.shape[-1] - 1}; leave rows without a label out by the mask")
    return z, truth
