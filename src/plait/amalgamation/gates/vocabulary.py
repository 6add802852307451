"""Whether a teacher has read the words of a text while it was fine-tuned: its embeddings remember."""

from __future__ import annotations

import torch

from plait.amalgamation.gate import GATES, Drift, Near, PerText, Starts, Tokens
from plait.amalgamation.neighbours import MOST, averaged


@GATES.register(
    "vocabulary",
    paper="arXiv:1805.04049",
    temperature=0.2,
    passes=False,
    keep="none",
    limits={"neighbours": (0, MOST), "smoothing": (1e-6, 100.0)},
    when="Teachers of different topics, which words tell apart.",
)
def vocabulary(
    drift: Drift, tokens: Tokens, starts: Starts, near: Near, *, neighbours: int = 10, smoothing: float = 0.1
) -> PerText:
    """Returns how much likelier the words of a text are in what the teacher read than in all texts, among neighbours.

    δ(v) = ‖E(v) − κ E_0(v)‖,  p(v) ∝ δ(v) + ε δ̄,  q(v) ∝ n(v) + 1
    s(x) = mean_{v ∈ x} log p(v) / q(v),  s̄(x) = (s(x) + Σ_{k ≤ K} s(x_k)) / (K + 1)

    A row of the embeddings has a gradient only where its token is read. From the base's E_0 to the teacher's E the rows
    of tokens that the teacher never saw have moved by weight decay alone, which κ takes away; the others moved the
    further the more often they were seen. p is therefore an estimate of how often each word stood in the texts that the
    teacher learnt from, which nobody has to have; how sure the teacher is has no part in it. δ̄ = Σ δ² / Σ δ is the
    movement of a typical row that moved, n(v) counts the token in the corpus, as the teacher's tokenizer cuts it.

    Differs from the paper, which shows that the gradient of the embeddings gives away the words of a batch, in reading
    the words from the weights, and in the use.

    Args:
        drift: δ of each token of the teacher's vocabulary.
        tokens: v, those of all texts in a row, special ones left out.
        starts: where each text begins in them, and where the last one ends.
        near: x_k, the nearest texts in the base's features, the nearest first.
        neighbours: K; 0 leaves each text alone and needs no pass of the base.
        smoothing: ε, what a token counts that was never seen.
    """
    moved = drift.double()
    typical = moved.square().sum() / moved.sum().clamp(min=torch.finfo(torch.float64).tiny)
    read = moved + smoothing * typical.clamp(min=torch.finfo(torch.float32).tiny)
    usual = torch.bincount(tokens, minlength=len(moved)).double() + 1
    ratio = (read / read.sum()).log() - (usual / usual.sum()).log()
    return averaged(mean_per_text(ratio[tokens], starts), near, neighbours)


def mean_per_text(values: Drift, starts: Starts) -> PerText:
    """Returns the mean over the tokens of each text; 0 where it has none."""
    ends = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return (ends[starts[1:]] - ends[starts[:-1]]) / starts.diff().clamp(min=1)
