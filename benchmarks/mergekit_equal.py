"""How far a recipe of mergekit run by Plait is from mergekit's own result: one tiny Llama, every rule without chance.

    python benchmarks/mergekit_equal.py --mergekit env/bin/mergekit-yaml --out benchmarks/results/mergekit_equal.json

mergekit lives in an environment of its own. The distance is the greatest |difference| of an entry, in units of the
typical change (the root mean square of what fine-tuning has changed), and the share of entries beyond 1e-4 of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import plait


def tokenizer_at(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "</s>", "<unk>", *(f"w{i}" for i in range(125))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **specials).save_pretrained(folder)


def models_at(folder: Path) -> dict[str, str]:
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    start = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    found = {}
    for seed, (name, size) in enumerate({"base": 0.0, "a": 0.3, "b": 0.3, "c": 0.3}.items()):
        draw = torch.Generator().manual_seed(seed)
        moved = {
            key: tensor + size * tensor.std().clamp(min=0.02) * torch.randn(tensor.shape, generator=draw)
            for key, tensor in start.items()
        }
        base.load_state_dict(moved)
        base.save_pretrained(folder / name)
        tokenizer_at(folder / name)
        found[name] = str(folder / name)
    return found


def recipes(m: dict[str, str]) -> dict[str, dict[str, Any]]:
    def of(method: str, *names: str, weight: Any = 0.5, base: str | None = "base", **shared: Any) -> dict[str, Any]:
        weights = {"parameters": {"weight": weight}} if weight is not None else {}
        content = {"merge_method": method, "models": [{"model": m[n], **weights} for n in names], "dtype": "float32"}
        return {**content, **({"base_model": m[base]} if base else {}), **({"parameters": shared} if shared else {})}

    sides = [{"model": m[n], "layer_range": [0, 4]} for n in "ab"]
    slices = {"slices": [{"sources": sides}], "merge_method": "slerp", "base_model": m["a"], "dtype": "float32"}
    attention, inner = {"filter": "self_attn", "value": [0, 0.5, 0.3, 1]}, {"filter": "mlp", "value": [1, 0.5, 0]}
    parts = [attention, inner, {"value": 0.5}]
    return {
        "linear": of("linear", "a", "b", "c", base=None, weight=0.7),
        "slerp": {**slices, "parameters": {"t": 0.3}},
        "slerp by layer and part": {**slices, "parameters": {"t": parts}},
        "nuslerp": of("nuslerp", "a", "b", base=None),
        "task_arithmetic": of("task_arithmetic", "a", "b", "c", **{"lambda": 0.8}),
        "task_arithmetic by layer": of("task_arithmetic", "a", "b", weight=[0.1, 0.9]),
        "ties": of("ties", "a", "b", "c", density=0.5),
        "ties, sum": of("ties", "a", "b", "c", density=0.3, normalize=False),
        "breadcrumbs": of("breadcrumbs", "a", "b", "c", density=0.5, gamma=0.1),
        "breadcrumbs_ties": of("breadcrumbs_ties", "a", "b", "c", density=0.5, gamma=0.1),
        "dare_linear, nothing dropped": of("dare_linear", "a", "b", density=1.0),
        "dare_ties, nothing dropped": of("dare_ties", "a", "b", density=1.0),
        "della, nothing dropped": of("della", "a", "b", density=1.0),
        "model_stock": of("model_stock", "a", "b", "c", weight=None),
        "karcher": of("karcher", "a", "b", "c", base=None, weight=None, max_iter=100, tol=1e-9),
        "passthrough": of("passthrough", "a", base=None, weight=None),
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


Tensors = dict[str, torch.Tensor]


def distance(mine: Tensors, theirs: Tensors, base: Tensors, a: Tensors) -> dict[str, Any]:
    assert mine.keys() == theirs.keys(), mine.keys() ^ theirs.keys()
    worst, where, beyond, count = 0.0, "", 0, 0
    for name, tensor in mine.items():
        unit = float((a[name] - base[name]).square().mean().sqrt())
        apart = (tensor - theirs[name]).abs() / unit
        if float(apart.max()) > worst:
            worst, where = float(apart.max()), name
        beyond, count = beyond + int((apart > 1e-4).sum()), count + tensor.numel()
    return {"greatest": worst, "where": where, "share beyond 1e-4": beyond / count}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mergekit", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        places = models_at(folder)
        base, a = (weights(folder / name) for name in ("base", "a"))
        for number, (name, content) in enumerate(recipes(places).items()):
            file = folder / f"{number}.yml"
            file.write_text(yaml.safe_dump(content))
            plait.run(file, output=folder / f"plait-{number}")
            line = [given.mergekit, str(file), str(folder / f"mk-{number}"), "--allow-crimes", "--no-copy-tokenizer"]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode:
                found[name] = {"mergekit failed": done.stderr.strip().splitlines()[-1]}
            else:
                found[name] = distance(weights(folder / f"plait-{number}"), weights(folder / f"mk-{number}"), base, a)
            print(name, found[name], flush=True)
    ask = "import importlib.metadata as m; print(m.version('mergekit'))"
    line = [str(Path(given.mergekit).parent / "python"), "-c", ask]
    version = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    content = {"mergekit": version, "plait": plait.__version__, "recipes": found}
    given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
