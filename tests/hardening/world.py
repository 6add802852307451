"""A small world of all that Plait writes and reads: sources, data, merge, ensemble, store, statistics, recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.hardening.harness import run
from tests.models import save, texts, tiny

SHORT = ("--epochs", "1", "--batch-size", "4")
CHEAP = (*SHORT, "--gate", "entropy")
TRAINED = ("--members", "2", *SHORT)


@dataclass(frozen=True)
class World:
    """Where everything lies."""

    root: Path


def build(root: Path) -> World:
    """Returns a world made by the commands themselves."""
    world = World(root)
    lines = texts(12, seed=7)
    for seed, (name, labels) in enumerate({"mood": 3, "type": 2}.items(), 1):
        save(tiny("bert", "sequence", seed=seed, labels=labels), root / name)
        rows = [{"text": line, "label": f"sequence-{at % labels}"} for at, line in enumerate(lines)]
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    pairs = [f"{line}\tsequence-{at % 3}" for at, line in enumerate(lines)]
    (root / "mood.tsv").write_text("text\tlabel\n" + "\n".join(pairs) + "\n")
    (root / "mood.csv").write_text(
        'text,label\n"' + '"\n"'.join(p.replace("\t", '","') for p in pairs) + '"\n'
    )
    columns = {"text": lines, "label": [f"sequence-{at % 3}" for at in range(12)]}
    (root / "mood.json").write_text(
        json.dumps([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    )
    recipe = {
        "combine": "merge",
        "sources": {
            name: {"model": str(root / name), "data": str(root / f"{name}.jsonl")}
            for name in ("mood", "type")
        },
        "method": {"name": "fisher", "importance": "diagonal", "examples": 8},
        "evaluate": {"mood": str(root / "mood.jsonl")},
        "output": str(root / "unwritten"),
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    two = [f"mood={root / 'mood'}", f"type={root / 'type'}"]
    diagonal = ["--importance", "diagonal", "-o"]
    commands: list[list[object]] = [
        ["merge", *two, "--method", "average", "-o", root / "merged"],
        ["posteriors", *two, "--text", root / "mood.jsonl", "--passes", "1", "-o", root / "store"],
        ["amalgamate", *two, "--text", root / "mood.jsonl", "--student", root / "mood", *CHEAP, "-o", root / "student"],
        ["ensemble", root / "mood", "--data", root / "mood.jsonl", *TRAINED, "-o", root / "ensemble"],
        *(
            ["estimate", root / name, "--data", root / f"{name}.jsonl", *diagonal, root / f"{name}.safetensors"]
            for name in ("mood", "type")
        ),
    ]  # fmt: skip
    for command in commands:
        outcome = run(*command, "--quiet", seconds=120)
        assert outcome.code == 0, outcome
        assert not outcome.faults, outcome
    return world


def commands(world: World, kind: str, target: Path, out: Path) -> list[list[object]]:
    """Returns the commands that read a mutated copy of one kind of thing."""
    other = f"type={world.root / 'type'}"
    mood, new = world.root / "mood.jsonl", ["-o", out / "new"]
    quick = ["--quiet"]
    judged = ["--data", f"mood={mood}", "--json", *quick]
    match kind:
        case "merged":
            return [
                ["evaluate", target, *judged],
                ["inspect", target],
                ["export", target, "--task", "mood", *new],
            ]
        case "mood":
            return [
                ["evaluate", target, "--data", mood, "--json", *quick],
                ["merge", f"mood={target}", other, "--method", "average", *new, *quick],
                ["inspect", target],
                ["finetune", target, "--data", mood, "--epochs", "1", *new, *quick],
                ["ensemble", target, "--data", mood, *TRAINED, *new, *quick],
                ["posteriors", f"mood={target}", other, "--text", mood, "--passes", "1", *new, *quick],
                [
                    "amalgamate",
                    f"mood={target}",
                    other,
                    "--text",
                    mood,
                    "--student",
                    target,
                    *SHORT,
                    *new,
                    *quick,
                ],
                ["estimate", target, "--data", mood, "-o", out / "new.safetensors", *quick],
            ]
        case "student":
            return [["evaluate", target, "--data", mood, "--json", *quick], ["inspect", target]]
        case "ensemble":
            return [
                ["evaluate", target, "--data", mood, "--json", *quick],
                ["inspect", target],
                ["export", target, *new],
            ]
        case "store":
            both = [f"mood={world.root / 'mood'}", other]
            return [
                ["inspect", target],
                ["posteriors", *both, "--text", mood, "--passes", "1", "-o", target, *quick],
            ]
        case "mood.safetensors":
            recipe = yaml.safe_load((world.root / "recipe.yaml").read_text())
            recipe["sources"]["mood"] = {"model": str(world.root / "mood"), "statistics": str(target)}
            recipe["sources"]["type"] = {
                "model": str(world.root / "type"),
                "statistics": str(world.root / "type.safetensors"),
            }
            recipe |= {"output": str(out / "new"), "evaluate": {}}
            (out / "told.yaml").write_text(yaml.safe_dump(recipe))
            return [["inspect", target], ["run", out / "told.yaml", *quick]]
        case "recipe.yaml":
            return [["check", target]]
    return [["evaluate", world.root / "mood", "--data", target, "--json", *quick]]  # data


KINDS = (
    "merged", "mood", "ensemble", "student", "store", "mood.safetensors", "recipe.yaml", "mood.tsv",
    "mood.csv", "mood.json", "mood.jsonl",
)  # fmt: skip
