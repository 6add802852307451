"""What teachers say of texts: scored once, with real dropout, and kept on disk for any gate and any student."""

from plait.statistics.posteriors.score import score_texts
from plait.statistics.posteriors.settings import Settings
from plait.statistics.posteriors.store import Cost, Posterior, Shard, Store, open_store
from plait.statistics.posteriors.teacher import Teacher

__all__ = ["Cost", "Posterior", "Settings", "Shard", "Store", "Teacher", "open_store", "score_texts"]
