"""Statistics of a decoder against an ordinary forward and backward pass: mask nodes, diagonal, block traces, Gram.

    PYTHONPATH=src python benchmarks/decoders.py [--rounds 5] [--layers 12]

The decoder has the shape of SmolLM2-135M (grouped queries, SwiGLU, tied; random weights, which cost the same) or fewer
of its 30 layers. Contenders take turns inside a round; the median of the rounds' ratios counts. Every round goes to
benchmarks/results/decoders.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plait.statistics.estimate import estimate_statistics

RESULTS = Path(__file__).parent / "results" / "decoders.json"
AIMS = {"mask_nodes": 0.70, "gram": 0.80}


def model(layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=["mask_nodes", "diagonal", "block_traces", "gram"])
    options = parser.parse_args()
    decoder = model(options.layers)
    ids = torch.randint(49152, (options.batch, options.tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def training_step() -> None:
        decoder.zero_grad(set_to_none=True)
        decoder(**batch).loss.backward()

    contenders: dict[str, Callable[[], object]] = {"forward+backward": training_step}
    for name in options.only:
        contenders[name] = lambda name=name: estimate_statistics(decoder, [batch, batch], estimator=name)
    rounds: list[dict[str, float]] = []
    for number in range(options.rounds + 1):
        seconds = {}
        for name, run in contenders.items():
            # CPU seconds: other programs of the machine do not count. Statistics see two batches, training one.
            start = time.process_time()
            run()
            seconds[name] = (time.process_time() - start) / (1 if name == "forward+backward" else 2)
        rounds += [seconds] if number else []  # the first is a warm-up
        ratios = {
            n: statistics.median(r[n] / r["forward+backward"] for r in rounds) for n in (options.only if rounds else ())
        }
        print(number, {name: round(value, 3) for name, value in ratios.items()}, flush=True)
        entry = {
            "settings": vars(options), "rounds": rounds, "median_ratio": ratios, "aims": AIMS,
            "machine": {"processor": platform.processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
                        "torch": torch.__version__},
        }  # fmt: skip
        RESULTS.write_text(json.dumps(entry, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
