"""What teachers say of texts: scored once, with real dropout, and kept on disk for any gate and any student."""

from __future__ import annotations

from plait.teachers.scoring import score_texts
from plait.teachers.settings import Settings
from plait.teachers.store import Cost, Posterior, Shard, Store, open_store
from plait.teachers.teacher import Teacher

__all__ = ["Cost", "Posterior", "Settings", "Shard", "Store", "Teacher", "open_store", "score_texts"]
