"""Refinement: the merged encoder learns the sources' own answers, from texts without labels."""

from plait.merging.refinement.answers import SourceTexts
from plait.merging.refinement.distillation import Refinement, refine, teaching
from plait.merging.refinement.heads import align_heads

__all__ = ["Refinement", "SourceTexts", "align_heads", "refine", "teaching"]
