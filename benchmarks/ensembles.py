"""Ensembles: the cost of a training step against its formula, of a prediction against one model, and memory.

    python benchmarks/ensembles.py [train] [predict] [latency] [memory] [plain] [--rounds 7] [--quick]

train     one step (forward, camero's objective, backward; no optimizer) of M members that share k layers, in units of
          3F · [ρ + M (1−ρ)]. F is one forward pass of one model in training mode, in the same round on the same batch;
          ρ = k/L because members differ from layer k on, for two perturbations: `gaussian` on the states that enter
          layer k, and `dropout` replicated at layer k. In both the encoder's own dropout is on, as it is in F.
predict   8 members over one encoder against one model of transformers' own class, 8 of them one after another, 8
          passes with dropout, and BatchEnsemble: as one writes it by hand, and with the layers of torch-uncertainty.
latency   milliseconds per text of what each method predicts with, as Plait keeps it, with four members.
memory    the peak of two steps with AdamW of M members with replay, against those of one model and of all members at
          once; one process each, what belongs to no file, beyond what there was before the model was loaded. Both as
          glibc keeps memory, with gaps that nothing fits into, and with each freed block given back at once.

plain     what `distilled` and the soups write, opened as anybody opens it, and the heads of a hydra, against one model;
          by default into benchmarks/results/ensembles_plain.json, with the load of the machine in that file.

Contenders take turns inside a round, each round gives one ratio, the median of the rounds counts. Results go to
benchmarks/results/ensembles.json, every round at once: a run that was stopped goes on.
`ensembles_peers.py` says how the peer is installed; it is left out where it is absent.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ensembles_peers import ByHand, Flat, batch_linear, replaced, together, version
from fisher import Batch, Record, encoder, fixed, load, training_step
from posteriors import Peak, anonymous
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from plait.checkpoints.checkpoint import open_checkpoint
from plait.ensembles.answers import Members
from plait.ensembles.build import new_ensemble
from plait.ensembles.cost import training_cost
from plait.ensembles.factors import add_factors, expanded
from plait.ensembles.folding import one_member
from plait.ensembles.method import Choice
from plait.ensembles.modeling import Ensemble
from plait.ensembles.objective import Ensembling, PerturbationChoice, perturbing
from plait.training.heads import quiet

RESULTS = Path(__file__).parent / "results" / "ensembles.json"
LABELS = ("no", "yes")
STEP = "one model, step"
FORWARD = "one model, forward"
ONE = "one model"
SEPARATE = ("separate", "codistillation")  # what they predict with is the same: M models
MEASURES = 3
WAYS = ("one model", "members at once", "members, replay")  # of the memory
ALLOCATORS: dict[str, dict[str, str]] = {"as it is": {}, "freed at once": {"MALLOC_MMAP_THRESHOLD_": "65536"}}


def ensemble(members: int, shared: Any = "all") -> Ensemble:
    """Returns new heads on the MiniLM, in evaluation."""
    return new_ensemble(open_checkpoint(encoder()), members=members, labels=LABELS, shared_layers=shared)


def plain_model() -> Any:
    """Returns transformers' own class, in evaluation."""
    with quiet():
        return load(len(LABELS))


def batch_of(tokens: int, size: int) -> Batch:
    return fixed(tokens, size, size)[0]


def objective_step(model: Ensemble, objective: Ensembling, batch: Batch) -> None:
    """One training step as the loop does it, without the optimizer."""
    model.zero_grad(set_to_none=True)
    terms = objective(model, batch)
    torch.stack(list(terms.values())).sum().backward()


def train(record: Record, options: argparse.Namespace) -> None:
    tokens, size = (16, 4) if options.quick else (32, 16)
    batch = batch_of(tokens, size)
    plain = plain_model().train()
    depth = int(plain.config.num_hidden_layers)

    def forward() -> None:
        plain(**batch)

    for members in (2, 4, 8):
        models = {shared: ensemble(members, shared).train() for shared in (0, depth // 2, depth)}
        for name in ("gaussian", "dropout"):
            contenders: dict[str, Callable[[], Any]] = {
                FORWARD: forward,
                STEP: lambda: training_step(plain, [batch]),
            }
            costs = {}
            for shared, model in models.items():
                noise = PerturbationChoice(name, replicate_at=shared)
                objective = Ensembling(Choice("camero"), noise, noise.depth(shared))
                contender = f"{shared} of {depth} layers shared"
                costs[contender] = training_cost(members, depth, objective.depth)
                contenders[contender] = lambda m=model, o=objective: perturbed_step(m, o, batch)
            setting = f"train M={members} {name}"
            record.race(setting, contenders, FORWARD, tokens=tokens, batch_size=size, forward_passes=costs)
            against_formula(record, setting, costs)


def perturbed_step(model: Ensemble, objective: Ensembling, batch: Batch) -> None:
    with perturbing(model, objective.noise):
        objective_step(model, objective, batch)


def against_formula(record: Record, setting: str, costs: dict[str, float]) -> None:
    """Adds the medians of step / (3F · [ρ + M (1−ρ)]), with 3F as it is defined and with a measured step of one."""
    entry = record.data["settings"][setting]
    rounds = [found["seconds"] for found in entry["rounds"]]
    entry["times_formula"] = {
        name: statistics.median(r[name] / (r[FORWARD] * cost) for r in rounds) for name, cost in costs.items()
    }
    entry["times_formula_of_steps"] = {
        name: statistics.median(3 * r[name] / (r[STEP] * cost) for r in rounds)
        for name, cost in costs.items()
    }
    entry["step_of_one_in_3F"] = statistics.median(r[STEP] / (3 * r[FORWARD]) for r in rounds)
    record.save()
    print(f"  a step of one model is {entry['step_of_one_in_3F']:.3f} x 3F")
    for name in costs:
        by_steps = entry["times_formula_of_steps"][name]
        print(
            f"  {name:24} {entry['times_formula'][name]:.3f} x formula, {by_steps:.3f} with steps of one model"
        )


def average(models: Sequence[nn.Module], batch: Batch) -> Tensor:
    return torch.stack([model(**batch).logits for model in models]).mean(0)


def unlabelled(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def repeatedly(count: int, ask: Callable[[], Any]) -> Callable[[], None]:
    """Returns a contender that asks several times without gradients, so that short passes can be timed."""

    def run() -> None:
        with torch.inference_mode():
            for _ in range(count):
                ask()

    return run


def shapes(options: argparse.Namespace) -> dict[int, int]:
    """Batch sizes, and how often one timing asks."""
    return {1: 2, 32: 1} if options.quick else {1: 20, 32: 2}


def tokens_of(options: argparse.Namespace) -> int:
    return 8 if options.quick else 32


def predict(record: Record, options: argparse.Namespace) -> None:
    members = 2 if options.quick else 8
    one = plain_model()
    dropping = copy.deepcopy(one).train()
    ours = ensemble(members)
    separate = [copy.deepcopy(one) for _ in range(members)]
    by_hand = replaced(one, lambda own: ByHand(own, members))
    peer, theirs = batch_linear(), None
    if peer is not None:
        theirs = replaced(one, lambda own: Flat(peer.BatchLinear.from_linear(own, members), own))
    for size, count in shapes(options).items():
        batch = unlabelled(batch_of(tokens_of(options), size))
        asked: dict[str, Callable[[], Any]] = {
            ONE: lambda b=batch: one(**b).logits,
            "plait": lambda b=batch: ours(**b).logits,
            "separate models": lambda b=batch: average(separate, b),
            "BatchEnsemble, by hand": lambda b=batch: together(by_hand, b, members),
            "dropout passes": lambda b=batch: average([dropping] * members, b),
        }
        if theirs is not None:
            asked["BatchEnsemble, torch-uncertainty"] = lambda b=batch: together(theirs, b, members)
        check(asked)
        record.race(
            f"predict B={size}", {name: repeatedly(count, ask) for name, ask in asked.items()}, ONE,
            members=members, tokens=tokens_of(options), times=count,
        )  # fmt: skip


def check(asked: dict[str, Callable[[], Tensor]]) -> None:
    """Factors of 1 leave the one model: a peer that says something else is not what it should be."""
    with torch.inference_mode():
        wanted = asked[ONE]()
        for name, ask in asked.items():
            if name.startswith("BatchEnsemble") or name == "separate models":
                torch.testing.assert_close(ask(), wanted, rtol=1e-3, atol=1e-4, msg=f"{name} differs")


def latency(record: Record, options: argparse.Namespace) -> None:
    members = 2 if options.quick else 4
    factored = ensemble(members)
    add_factors(factored, 0.1)
    models = [ensemble(1) for _ in range(members)]
    kept: dict[str, list[Members]] = {
        "single": [speaker(models[0])],
        "separate": [speaker(model) for model in models],
        "camero": [speaker(ensemble(members))],
        "batchensemble": [speaker(expanded(factored))],
        "mc-dropout": [speaker(ensemble(1), members)],
    }
    keys = {1: "batch_1_ms", 32: "batch_32_ms_per_text"}
    found: dict[str, dict[str, float]] = {}
    for size, count in shapes(options).items():
        batch = unlabelled(batch_of(tokens_of(options), size))
        contenders = {
            name: repeatedly(count, lambda s=speakers, b=batch: [one(**b) for one in s])
            for name, speakers in kept.items()
        }
        setting = f"latency B={size}"
        record.race(setting, contenders, "single", members=members, tokens=tokens_of(options), times=count)
        for name, seconds in record.data["settings"][setting]["median_seconds"].items():
            for row in SEPARATE if name in SEPARATE else (name,):
                found.setdefault(row, {})[keys[size]] = round(1000 * seconds / count / size, 3)
    record.data["latency"] = found
    record.save()
    for name, row in found.items():
        print(f"latency {name:16}", row)


def plain(record: Record, options: argparse.Namespace) -> None:
    one, heads = plain_model(), ensemble(2 if options.quick else 4)
    with tempfile.TemporaryDirectory() as folder, quiet():
        one_member(ensemble(1), 0).save_pretrained(folder)
        written = AutoModelForSequenceClassification.from_pretrained(folder)
    for size, count in shapes(options).items():
        batch = unlabelled(batch_of(tokens_of(options), size))
        asked: dict[str, Callable[[], Any]] = {
            ONE: lambda b=batch: one(**b).logits,
            "distilled": lambda b=batch: written(**b).logits,
            "hydra": lambda b=batch: heads(**b).logits,
        }
        record.race(
            f"plain B={size}", {name: repeatedly(count, ask) for name, ask in asked.items()}, ONE,
            members=heads.config.members, tokens=tokens_of(options), times=count,
        )  # fmt: skip


def speaker(model: Ensemble, passes: int | None = None) -> Members:
    """Returns a model as `plait evaluate` asks it."""
    return Members(model, model.config.encoder, passes=passes).eval()


def memory(record: Record, options: argparse.Namespace) -> None:
    """A process for each way and allocator, and what each takes of one model's memory."""
    for allocator, setting in ALLOCATORS.items():
        found = record.data.setdefault("memory", {}).setdefault(allocator, {})
        for way in WAYS:
            if way not in found:
                command = [sys.executable, __file__, "--measure", way]
                command += ["--threads", str(options.threads)] if options.threads else []
                command += ["--quick"] if options.quick else []
                own = {**os.environ, **setting}
                runs = []
                for _ in range(MEASURES):  # where blocks come to lie in the heap is chance
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=own)
                    runs.append(json.loads(done.stdout.splitlines()[-1]))
                runs.sort(key=lambda run: float(run["added_MB"]))
                found[way] = {**runs[MEASURES // 2], "added_MB_of_each": [run["added_MB"] for run in runs]}
            found[way]["times_one_model"] = round(found[way]["added_MB"] / found[ONE]["added_MB"], 4)
            record.save()
            print(f"memory {allocator:14} {way:16}", found[way], flush=True)


def measure(way: str, options: argparse.Namespace) -> None:
    """One process of `memory`: all layers shared and dropout from the embeddings on, as by default."""
    members, tokens, size = (4, 32, 8) if options.quick else (8, 128, 16)
    batch = batch_of(tokens, size)
    before = anonymous()
    model: Any = plain_model() if way == ONE else ensemble(members)
    # As they are loaded some weights still belong to a file: both kinds of model are to count all of theirs.
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    model.train()
    objective = Ensembling(Choice("camero"), PerturbationChoice("dropout"), 0, replay=way.endswith("replay"))
    optimizer = torch.optim.AdamW(model.parameters())
    tidy()
    built, peak = anonymous(), Peak()
    try:
        for _ in range(2):
            if way == ONE:
                training_step(model, [batch])
            else:
                perturbed_step(model, objective, batch)
            optimizer.step()
    finally:
        most = peak.stop()
    facts = {
        "members": 1 if way == ONE else members,
        "tokens": tokens,
        "batch_size": size,
        "before_MB": round(before, 1),
        "weights_MB": round(built - before, 1),
        "peak_MB": round(most, 1),
        "added_MB": round(most - before, 1),
    }
    print(json.dumps(facts))


def tidy() -> None:
    """Gives back what building a model needed: freed memory would be used again and hide what a step takes."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    parts = {"train": train, "predict": predict, "latency": latency, "memory": memory, "plain": plain}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*parts, []])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--others", type=float, default=0.05, help="repeat rounds in which others took more")
    parser.add_argument("--quick", action="store_true", help="small batches and few members, to steer by")
    parser.add_argument("--measure", choices=WAYS, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.measure:
        measure(options.measure, options)
        return
    alone = options.parts == ["plain"]
    out = options.out or (RESULTS.with_name("ensembles_plain.json") if alone else RESULTS)
    record = Record(options.rounds, out, options.others)
    record.data["machine"]["versions"]["torch-uncertainty"] = version()
    for part in options.parts or parts:
        print(f"\n== {part}", flush=True)
        parts[part](record, options)


if __name__ == "__main__":
    main()
