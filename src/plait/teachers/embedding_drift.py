"""How far fine-tuning has moved the embedding of each word: what a teacher read, told by its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.checkpoints import parameter_names
from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.headers import Header
from plait.data import Texts, encode, length_limit
from plait.errors import SourceError
from plait.teachers.shapes import Places, Starts, Tokens

ROWS = 8192
"""Rows of the embeddings in float64 at a time."""
KIN = 0.9
"""The cosine that a row has with its row in the base, in the median; embeddings of other encoders are nowhere near."""
STILL = 1e-6
"""A movement that is less than this share of the rows' length is rounding: such embeddings were not trained."""


@dataclass(frozen=True)
class Words:
    """The tokens of n texts as a teacher reads them, special ones left out, in a row.

    Attributes:
        tokens: all of them.
        starts: where each text begins, and where the last one ends.
    """

    tokens: Tokens
    starts: Starts


def words_of(texts: Texts, teacher: Checkpoint, max_length: int) -> Words:
    """Returns the tokens of all texts, cut as a teacher's are; runs no model.

    Args:
        texts: n of them.
        teacher: whose tokenizer reads them.
        max_length: tokens that are read of each text.
    """
    tokenizer = teacher.tokenizer()
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    limit = length_limit(tokenizer, teacher.config, max_length)
    tokens, sizes = [], [0]
    for chunk in texts.chunks():
        table = encode(chunk.unlabelled(), tokenizer, max_length=limit, config=teacher.config, labels=False)
        for features in table.features:
            ids = torch.tensor(features["input_ids"])
            tokens.append(ids[~torch.isin(ids, special)])
            sizes.append(sizes[-1] + len(tokens[-1]))
    return Words(torch.cat(tokens), torch.tensor(sizes))


def embedding_drift(teacher: Checkpoint, base: Checkpoint) -> Places:
    """Returns per token of a teacher how far its embedding has moved from the base's.

    δ(v) = ‖E(v) − κ E_0(v)‖,  κ = median_v ⟨E(v), E_0(v)⟩ / ⟨E_0(v), E_0(v)⟩

    κ is what weight decay has left of a row that no text has moved. Tokens that the base does not have get the mean.

    Args:
        teacher: a fine-tuned encoder.
        base: what it was fine-tuned from; only the two tables of embeddings are read.

    Raises:
        SourceError: The two are not of one kind, the teacher was not fine-tuned from this base, or its embeddings were
            not trained.
    """
    squares, inner, lengths = _products(teacher, base)
    real = (lengths > 0) & (squares > 0)
    shrinkage = (inner / lengths)[real].median()
    # In float64 this difference of squares is good to some 1e-8 of a row's length.
    moved = (squares - 2 * shrinkage * inner + shrinkage**2 * lengths).clamp(min=0).sqrt()
    if float(moved.max()) <= STILL * float(lengths[real].sqrt().mean()):
        raise SourceError(f"{teacher.name}: its embeddings are those of {base.origin}, they were not trained")
    rows = _table(teacher)[1].shape[0]
    drift = moved.new_full((rows,), float(moved.mean()))
    drift[: len(moved)] = moved
    return drift


def check_kin(teacher: Checkpoint, base: Checkpoint) -> None:
    """Raises `SourceError` where a teacher was not fine-tuned from this base, by type and embeddings; runs no model."""
    kinds = [checkpoint.config.model_type for checkpoint in (teacher, base)]
    if kinds[0] != kinds[1]:
        raise SourceError(f"{teacher.name}: is of type {kinds[0]}, {base.origin} of type {kinds[1]}: not its base")
    _products(teacher, base)


def _products(teacher: Checkpoint, base: Checkpoint) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ⟨E, E⟩, ⟨E, E_0⟩ and ⟨E_0, E_0⟩ by row, of the rows that both have."""
    (name, header), (before, other) = _table(teacher), _table(base)
    if header.shape[1:] != other.shape[1:]:
        raise SourceError(f"{teacher.name}: its embeddings have another shape than those of {base.origin}")
    products = []
    for ours, theirs in zip(teacher.read(name).split(ROWS), base.read(before).split(ROWS), strict=False):
        rows = min(len(ours), len(theirs))
        a, b = ours[:rows].double(), theirs[:rows].double()
        products.append(torch.stack([(a * a).sum(-1), (a * b).sum(-1), (b * b).sum(-1)]))
    squares, inner, lengths = torch.cat(products, 1)
    real = (lengths > 0) & (squares > 0)
    if not bool(real.any()) or float((inner / (lengths * squares).sqrt())[real].median()) < KIN:
        raise SourceError(f"{teacher.name}: was not fine-tuned from {base.origin}; name its base with --base")
    return squares, inner, lengths


def _table(checkpoint: Checkpoint) -> tuple[str, Header]:
    """Returns the stored name and the header of the table of token embeddings."""
    model = parameter_names.skeleton(checkpoint.model_class, checkpoint.config, str(checkpoint.folder))
    weight = getattr(model.get_input_embeddings(), "weight", None)
    names = (name for name, value in model.named_parameters(remove_duplicate=False) if value is weight)
    stored = next(_stored(checkpoint, names), None)
    if stored is None:
        raise SourceError(f"{checkpoint.origin}: its table of token embeddings was not found")
    return stored, checkpoint.header(stored)


def _stored(checkpoint: Checkpoint, names: Iterator[str]) -> Iterator[str]:
    for name in names:
        stored = checkpoint.body.get(name.removeprefix(f"{checkpoint.prefix}."))
        if stored is not None:
            yield stored
