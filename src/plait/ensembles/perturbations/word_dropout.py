"""Word dropout: some words of a text are unknown to some members."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plait.ensembles.perturbation import (
    PERTURBATIONS,
    Generators,
    Place,
    by_member,
    check,
    drawn,
    mask_by_member,
)
from plait.ensembles.shapes import Hidden, Ids, Mask
from plait.registry import Above


@PERTURBATIONS.register(
    "word_dropout",
    place=Place.EMBEDDINGS,
    paper="arXiv:1512.05287",
    limits={"rate": Above(0.0, 1.0)},
    when="Short texts, in which single words decide.",
)
def word_dropout(
    hidden: Hidden,
    members: int,
    droppable: Mask,
    blank: Tensor | None = None,
    generators: Generators = None,
    *,
    rate: float = 0.1,
) -> Hidden:
    """Returns the embeddings with a share of the words blanked, others for every member.

    With `blank` the output of the embeddings for `blanked` ids, this equals replacing the ids: embeddings look at one
    place at a time. What is kept is not rescaled.

    Differs from the paper in drawing tokens, not kinds of words: a word that occurs twice may be dropped once.

    Args:
        hidden: what the embeddings give.
        members: M.
        droppable: the words that may go; see `droppable_words`.
        blank: what takes their place, zeros by default.
        generators: one per member.
        rate: the probability with which a word is dropped.
    """
    check("word_dropout", rate=rate)
    h = by_member(hidden, members)
    dropped = drawn(torch.rand, h.shape[:3], h, generators).unsqueeze(-1) < rate
    dropped = dropped & mask_by_member(droppable, h).bool()
    other = torch.zeros((), dtype=h.dtype, device=h.device) if blank is None else blank.to(h)
    return torch.where(dropped, other, h).to(hidden.dtype).reshape(hidden.shape)


def droppable_words(ids: Ids, mask: Mask, special: Sequence[int]) -> Mask:
    """Returns which tokens may be dropped: the real ones that are not special, such as [CLS] and [SEP]."""
    known = torch.tensor(sorted(special), device=ids.device, dtype=ids.dtype)
    return mask.bool() & ~torch.isin(ids, known)


def blanked(ids: Ids, droppable: Mask, unknown: int) -> Ids:
    """Returns the ids with every word that may be dropped replaced by the mask's or the unknown word's id."""
    return torch.where(droppable.bool(), torch.full_like(ids, unknown), ids)
