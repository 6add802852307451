"""Two teachers teach one student the labels of both.

One classifier knows films and food, another books and songs. The labelled texts are lost, but there are unlabelled
sentences of all four kinds. From these, the script makes one classifier with four labels.

    python examples/amalgamate.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import toy

import plait

KNOWN = {"screen": ("film", "food"), "shelf": ("book", "song")}


def main(place: Path, base: str) -> None:
    """Trains two teachers, then two students."""
    teachers = {}
    for name, topics in KNOWN.items():
        data = toy.write(place / f"{name}.jsonl", toy.sentences(160, topics=topics), "topic")
        plait.finetune(base, data, place / name, epochs=3, learning_rate=1e-4, max_length=32)
        teachers[name] = place / name
    texts = toy.write(place / "unlabelled.jsonl", toy.sentences(320), None)
    test = toy.write(place / "test.jsonl", toy.sentences(120, test=True), "topic")
    settings = {"epochs": 5, "learning_rate": 1e-4, "max_length": 32}

    # Both teachers read every sentence. For each, the gate finds the competent teacher, and the student learns from
    # that teacher's prediction.
    student = plait.amalgamate(
        teachers, texts=texts, student=base, base=base, out=place / "student", **settings
    )
    assert sorted(student.labels) == ["book", "film", "food", "song"]
    shares = student.report["who_taught_what"]["teachers"]
    print({name: f"taught {about['share']:.0%} of the texts" for name, about in shares.items()})

    # A teacher alone knows two of four labels, so it cannot be right on more than half of the test sentences.
    scores = plait.evaluate(student, test).tasks["model"]
    alone = {name: metrics["accuracy"] for name, metrics in scores.sources.items()}
    print(f"student {scores.metrics['accuracy']:.3f}; {alone}")
    assert scores.metrics["accuracy"] > 0.7
    assert all(scores.metrics["accuracy"] > alone[name] for name in teachers)

    # The teachers' predictions are on disk. Another student, here by soft targets, runs no teacher at all.
    second = plait.amalgamate(
        teachers, texts=texts, student=base, base=base, target="soft",
        store=place / "student.posteriors", out=place / "second", **settings,
    )  # fmt: skip
    assert second.report["forward_equivalents"]["teachers_now"] == 0
    print(second.predict(["What a charming lullaby!"]))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch), toy.encoder())
