"""Texts and labels: read from anywhere, mapped to a head's labels, cut into batches."""

from plait.data.batching import Encoded, batches, collate, encode, length_limit, plan
from plait.data.examples import Examples, Kind, ProblemType, held_back
from plait.data.labels import align_labels
from plait.data.reading import read_examples
from plait.data.texts import Texts, open_texts

__all__ = [
    "Encoded",
    "Examples",
    "Kind",
    "ProblemType",
    "Texts",
    "align_labels",
    "batches",
    "collate",
    "encode",
    "held_back",
    "length_limit",
    "open_texts",
    "plan",
    "read_examples",
]
