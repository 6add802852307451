"""Four opinions in one encoder pass, then in one ordinary checkpoint.

An ensemble usually costs as many passes as it has members. Here the members share the encoder and have heads of their
own, so one pass computes them all. Linear heads also fold into one model, which transformers loads without Plait.

    python examples/ensemble.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import toy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import plait


def main(place: Path, base: str) -> None:
    """Trains an ensemble, predicts with it, and exports it."""
    train = toy.write(place / "train.jsonl", toy.sentences(192), "topic")
    test = toy.write(place / "test.jsonl", toy.sentences(120, test=True), "topic")
    saved = plait.ensemble(
        base, data=train, members=4, epochs=3, learning_rate=1e-4, max_length=32, out=place / "ensemble"
    )
    scores = plait.evaluate(saved, test).tasks["model"].metrics
    print(f"accuracy {scores['accuracy']:.3f}, members disagree on {scores['disagreement']:.1%} of the texts")
    assert scores["accuracy"] > 0.7

    # The ensemble is a transformers model. Its logits are the mean of its members'.
    model = plait.load(place / "ensemble")
    batch = AutoTokenizer.from_pretrained(place / "ensemble")(["What a charming lullaby!"], return_tensors="pt")
    passes: list[object] = []
    model.base_model.register_forward_hook(lambda *_: passes.append(1))
    with torch.inference_mode():
        found = model(**batch, output_members=True)
    assert len(passes) == 1
    assert found.member_logits.shape[0] == 4
    torch.testing.assert_close(found.logits, found.member_logits.mean(0))

    # Folded, the same answers come from an ordinary checkpoint of the encoder's own class.
    plait.export(place / "ensemble", place / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(place / "plain").eval()
    with torch.inference_mode():
        torch.testing.assert_close(plain(**batch).logits, found.logits, rtol=1e-4, atol=1e-5)
    print("one pass, four members:", found.member_logits.argmax(-1).squeeze(-1).tolist())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch), toy.encoder())
