"""Two fine-tuned encoders become one.

Somebody has one model that knows *what* a sentence is about and another that knows *how* it judges. Both started from
the same encoder. Serving both costs two encoders; this script makes them one.

    python examples/merge.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import toy

import plait

TASKS = ("topic", "mood")


def main(place: Path, base: str) -> None:
    """Fine-tunes two sources, merges them, and compares."""
    # Two ordinary checkpoints, each with a head of its own: four topics, two moods.
    train = {task: toy.write(place / f"{task}.jsonl", toy.sentences(192), task) for task in TASKS}
    test = {
        task: toy.write(place / f"{task}.test.jsonl", toy.sentences(120, test=True), task) for task in TASKS
    }
    for task in TASKS:
        plait.finetune(base, train[task], place / task, epochs=3, learning_rate=1e-4, max_length=32)

    # The merge. Without a method Plait chooses one by its inputs: here the base, which the sources record, and texts
    # of every source. It reads no label of these texts.
    merged = plait.merge(
        {task: place / task for task in TASKS}, data=train, max_length=32, out=place / "merged"
    )

    # Scores of the merged model, and of each source on the same sentences.
    scores = plait.evaluate(merged, test)
    for task in TASKS:
        found = scores.tasks[task]
        print(f"{task}: accuracy {scores[task]['accuracy']:.3f}, {found.relative:.0%} of its source")

    # One encoder serves both tasks, and one pass answers both questions.
    assert merged.task("topic").base_model.encoder is merged.task("mood").base_model.encoder
    answers = merged.predict("What a charming lullaby!")
    print({task: answers[task][0]["label"] for task in TASKS})

    # The claim: half the size, and each task keeps more than four fifths of its accuracy.
    for task in TASKS:
        assert scores.tasks[task].relative > 0.8, task


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch), toy.encoder())
