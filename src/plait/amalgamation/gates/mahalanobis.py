"""How near a text lies to what a teacher knows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from plait.amalgamation.gate import GATES, Features, Logits, PerText, certainty
from plait.errors import DataError

CHUNK = 8192  # texts in float64 at a time
LEAST_WEIGHT = 1e-6  # of a text about which the teacher says nothing: weights never all vanish
SAME = 1e-9  # a spread that is less than this share of the scores is rounding
LEAST_VARIANCE = 1e-6  # of the corpus's typical one: labels with one text each have none of their own


@GATES.register(
    "mahalanobis",
    paper="arXiv:2106.09022",
    temperature=1.0,
    passes=False,
    keep="features",
    limits={"shrinkage": (0.0, 1.0)},
    when="One gate alone, with one pass for each text.",
)
def mahalanobis(features: Features, logits: Logits, *, shrinkage: float = 0.1) -> PerText:
    """Returns minus the relative Mahalanobis distance to the nearest label, in units of its own spread.

    d_c(x) = (h − μ_c)ᵀ Σ⁻¹ (h − μ_c),  d_0(x) = (h − μ_0)ᵀ Σ_0⁻¹ (h − μ_0)
    s = −min_c (d_c − d_0) / sd,  sd the standard deviation over the texts

    Needs the features of the whole corpus, in whatever precision they were kept; float64 is only ever a chunk of them.
    Subtracting d_0 takes away what is unusual about a text for every label alike.

    Differs from the paper in doing without labels and without the teacher's training texts: μ_c and the shared Σ are
    those of the corpus itself, every text given to its most probable label and weighted by 1 − H(softmax z)/log C;
    μ_0 and Σ_0 are those of the corpus, unweighted. Covariances are shrunk: (1 − ρ) Σ + ρ (tr Σ / d) I. Labels that
    are never the most probable are left out. Dividing by sd puts teachers of different widths on one scale.

    Args:
        features: h, of all texts.
        logits: z, of all texts.
        shrinkage: ρ, between 0 and 1.
    """
    return scaled(relative_distance(features, logits, shrinkage))


def relative_distance(features: Features, logits: Logits, shrinkage: float) -> PerText:
    """Returns d_0 − min_c d_c of all texts: how much nearer than to all texts a text is to those of one label."""
    _check(features)
    logs = torch.log_softmax(logits.double(), -1)
    weights = certainty(-(logs.exp() * logs).sum(-1), logits.shape[-1]).clamp(min=LEAST_WEIGHT)
    members = torch.nn.functional.one_hot(logs.argmax(-1), logits.shape[-1]).double() * weights[:, None]
    members = members[:, members.sum(0) > 0]
    middle = sum(part.double().sum(0) for part in features.split(CHUNK)) / len(features)

    def parts(*others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yields the features around their middle, a chunk at a time, beside the same texts of other tensors."""
        for part, *rest in zip(*(t.split(CHUNK) for t in (features, *others)), strict=True):
            yield part.double() - middle, *rest

    centres = torch.stack([m.T @ h for h, m in parts(members)]).sum(0) / members.sum(0)[:, None]
    corpus = torch.stack([h.T @ h for (h,) in parts()]).sum(0) / len(features)
    within = torch.stack([_scatter(h - centres[m.argmax(-1)], w) for h, m, w in parts(members, weights)])
    least = (LEAST_VARIANCE * corpus.diagonal().mean()).clamp(min=torch.finfo(torch.float32).tiny)
    shared = _whitening(within.sum(0) / weights.sum(), shrinkage, least)
    background = _whitening(corpus, shrinkage, least)
    scores = [_distance(h, background) - _nearest(h, centres, shared) for (h,) in parts()]
    return torch.cat(scores)


def _scatter(deviations: Tensor, weights: Tensor) -> Tensor:
    return (deviations * weights[:, None]).T @ deviations


def _distance(deviations: Tensor, whitening: Tensor) -> PerText:
    return (deviations @ whitening).square().sum(-1)


def _nearest(points: Tensor, centres: Tensor, whitening: Tensor) -> PerText:
    return torch.stack([_distance(points - centre, whitening) for centre in centres]).amin(0)


def _check(features: Features) -> None:
    if bad := int((~torch.isfinite(features).all(-1)).sum()):
        raise DataError(
            f"mahalanobis: the features of {bad} texts are not finite (float16 overflows beyond 65504): "
            "choose a gate that needs none, such as energy"
        )


def scaled(scores: PerText) -> PerText:
    """Returns scores over their standard deviation; 0 where they differ by rounding alone."""
    spread = scores.std(correction=0)
    real = spread > SAME * scores.abs().amax()
    return scores / spread if bool(real) else torch.zeros_like(scores)


def _whitening(covariance: Tensor, shrinkage: float, least: Tensor) -> Tensor:
    """Returns W with W Wᵀ = Σ⁻¹, for a shrunk Σ whose variances are at least `least` in every direction."""
    diagonal = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    shrunk = (1 - shrinkage) * covariance + shrinkage * covariance.diagonal().mean() * diagonal
    values, vectors = torch.linalg.eigh(shrunk)
    found: Tensor = vectors * values.clamp(min=least).rsqrt()
    return found
