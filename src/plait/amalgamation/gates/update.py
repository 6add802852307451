"""How strongly a text calls up what fine-tuning has changed in a teacher."""

from __future__ import annotations

from plait.amalgamation.gate import GATES, Near, PerText, Response
from plait.amalgamation.neighbours import MOST, averaged
from plait.amalgamation.routing import standardize


@GATES.register(
    "update",
    paper="arXiv:2604.01329",
    temperature=0.2,
    passes=False,
    keep="none",
    limits={"neighbours": (0, MOST)},
    when="Teachers fine-tuned from one base, on texts of different kinds.",
)
def update(response: Response, near: Near, *, neighbours: int = 0) -> PerText:
    """Returns how much of each linear layer's output fine-tuning has changed, as standard scores, averaged over layers.

    r_l(x) = mean_{t ∈ x} log(‖(W_l − W_l,0) a_t‖² / ‖W_l,0 a_t‖²),  s(x) = mean_l (r_l(x) − r̄_l) / sd_l

    a_t is what layer l reads at token t in the base, W_0 the base's weights and W the teacher's. An update is a sum of
    outer products of gradients with what the layer read while it learnt, so its product with an input is large where
    the input resembles those of the teacher's own texts: a covariance of texts that nobody has to have.

    Differs from the paper, which merges with that covariance, in the use; in one number a layer; and in the scale,
    the base's own output.

    Args:
        response: r, one column per linear layer of the encoder that has changed.
        near: the nearest texts in the base's features, the nearest first.
        neighbours: over how many of these the score is averaged besides; 0 needs no neighbours.
    """
    return averaged(standardize(response).mean(-1), near, neighbours)
