"""Four models in one encoder pass, then in one ordinary checkpoint: a script that asserts its own claim.

Run it after `make demo`, which leaves an ensemble in demo/:

    python examples/four_members.py demo
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import plait


def main(folder: Path) -> None:
    ensemble = plait.load(folder / "ensemble")
    tokenizer = AutoTokenizer.from_pretrained(folder / "ensemble")
    batch = tokenizer(["Compute the eigenvalues of a symmetric matrix."], return_tensors="pt")

    passes: list[object] = []
    ensemble.base_model.register_forward_hook(lambda *_: passes.append(1))
    with torch.inference_mode():
        found = ensemble(**batch, output_members=True)
    # One pass of the encoder, four opinions; what an ordinary output says is their mean.
    assert len(passes) == 1
    assert found.member_logits.shape[0] == 4
    torch.testing.assert_close(found.logits, found.member_logits.mean(0))

    with tempfile.TemporaryDirectory() as scratch:
        # Linear heads fold: the same answers from a checkpoint that needs nothing of ours.
        plait.export(folder / "ensemble", Path(scratch) / "plain")
        plain = AutoModelForSequenceClassification.from_pretrained(Path(scratch) / "plain").eval()
        with torch.inference_mode():
            torch.testing.assert_close(plain(**batch).logits, found.logits, rtol=1e-4, atol=1e-5)
    print("one pass, four members:", found.member_logits.argmax(-1).squeeze(-1).tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
