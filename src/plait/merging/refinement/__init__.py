"""Refinement: the merged encoder learns the sources' own answers, from texts without labels."""

from plait.merging.refinement.answers import SourceTexts
from plait.merging.refinement.distillation import Refinement, refine

__all__ = ["Refinement", "SourceTexts", "refine"]
