"""Texts and labels: read from anywhere, mapped to a head's labels, cut into batches."""

from plait.data.batching import Encoded, batches, collate, encode, length_limit, plan
from plait.data.examples import Examples, Kind, ProblemType
from plait.data.labels import align_labels
from plait.data.reading import read_examples

__all__ = [
    "Encoded",
    "Examples",
    "Kind",
    "ProblemType",
    "align_labels",
    "batches",
    "collate",
    "encode",
    "length_limit",
    "plan",
    "read_examples",
]
