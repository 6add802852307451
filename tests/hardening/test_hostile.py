"""Folders and files that are meant to harm: nothing runs, nothing hangs, one line says what is wrong."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.errors import as_line, printable
from tests.hardening.harness import run
from tests.hardening.world import World, commands

Change = Callable[[Any], None]


def edit(file: Path, **changes: Any) -> None:
    """Sets or (with `...`) removes keys of a JSON file."""
    content = json.loads(file.read_text())
    for name, value in changes.items():
        content.pop(name, None) if value is ... else content.update({name: value})
    file.write_text(json.dumps(content))


def refused(arguments: list[object], *fragments: str) -> str:
    """Returns the one line with which a command refuses."""
    outcome = run(*arguments)
    assert outcome.faults == []
    assert outcome.code == 2, outcome
    for fragment in fragments:
        assert fragment in outcome.message, outcome.message
    return outcome.message


CODE = """import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import BertConfig, BertModel, BertForSequenceClassification, BertTokenizer
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""
OWN = {
    "AutoConfig": "own.OwnConfig",
    "AutoModel": "own.OwnModel",
    "AutoModelForSequenceClassification": "own.OwnModel",
}


def plant(folder: Path, marker: Path, *, known: bool) -> None:
    """Makes a folder ask for code of its own, under a model type that is known or not."""
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    changes = {"auto_map": OWN} | ({} if known else {"model_type": "own"})
    edit(folder / "config.json", **changes)
    if (folder / "tokenizer_config.json").is_file():
        edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnModel", None]})


PLACES = [
    ("merged", "."), ("merged", "tasks/mood"), ("mood", "."), ("ensemble", "."),
]  # fmt: skip


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("kind", "inside"), PLACES)
def test_no_code_runs_and_nobody_is_asked(
    world: World, copy: Any, tmp_path: Path, kind: str, inside: str, known: bool
) -> None:
    target, marker = copy(kind), tmp_path / "marker"
    plant(target / inside, marker, known=known)
    data, out = world.root / "mood.jsonl", tmp_path / "out"
    two = [f"mood={target}", f"type={world.root / 'type'}"]
    every = [
        *commands(world, kind, target, tmp_path),
        ["merge", *two, "--method", "average", "-o", out],
        ["estimate", target, "--data", data, "-o", tmp_path / "s.safetensors"],
        ["posteriors", *two, "--text", data, "-o", out],
        ["amalgamate", *two, "--text", data, "--student", target, "--epochs", "1", "-o", out],
        ["finetune", target, "--data", data, "--epochs", "1", "-o", out],
        ["ensemble", target, "--data", data, "--members", "2", "--epochs", "1", "-o", out],
        ["ensemble", "--from", target, world.root / "mood", "--epochs", "0", "-o", out],
        ["export", target, "-o", out],
    ]
    for command in every:
        outcome = run(*command)
        assert outcome.faults == [], (command[0], outcome)
        assert outcome.code == 2 or inside != "." or command[0] == "inspect", (command[0], outcome)
        assert not marker.exists(), command[0]


def test_an_encoder_inside_an_ensemble_runs_no_code(copy: Any, world: World, tmp_path: Path) -> None:
    target, marker = copy("ensemble"), tmp_path / "marker"
    (target / "own.py").write_text(CODE.format(marker=str(marker)))
    content = json.loads((target / "config.json").read_text())
    content["encoder"]["auto_map"] = OWN
    (target / "config.json").write_text(json.dumps(content))
    for command in commands(world, "ensemble", target, tmp_path):
        outcome = run(*command)
        assert outcome.faults == [], outcome
        assert not marker.exists()


NAMES = [
    "pipeline", "Trainer", "set_seed", "__name__", "PreTrainedModel", "AutoModel", "BertConfig", "BertTokenizer", "",
    "os",     "BertForTokenClassification", "BertModel", "../BertModel", "BertForMaskedLM",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_class_of_a_manifest_is_a_model_of_its_kind(
    world: World, copy: Any, tmp_path: Path, name: str
) -> None:
    target = copy("merged")
    content = json.loads((target / "plait.json").read_text())
    content["tasks"]["mood"]["architecture"] = name
    (target / "plait.json").write_text(json.dumps(content))
    refused(commands(world, "merged", target, tmp_path)[0], "tasks/mood", name or "architecture")


@pytest.mark.parametrize(
    "name", ["pipeline", "Trainer", "set_seed", "__name__", "PreTrainedModel", "BertConfig"]
)
def test_a_class_of_a_config_is_a_model(world: World, copy: Any, tmp_path: Path, name: str) -> None:
    for kind in ("merged", "mood"):
        target = copy(kind)
        edit(target / "config.json", architectures=[name])
        refused(commands(world, kind, target, tmp_path)[0], f"architecture {name!r} is not understood")


FIELDS: list[tuple[str, str, Any, str]] = [
    ("plait.json", "tasks", {}, "tasks is a dict"),
    ("plait.json", "tasks", {"../../up": {}}, "it names a folder"),
    ("plait.json", "tasks", {"mood": []}, "tasks.mood is a list"),
    ("plait.json", "format", "1e9", "format is '1e9'"),
    ("plait.json", "format", 10**30, "a whole number of 100 bits"),
    ("plait.json", "sources", None, "sources is None"),
    ("plait.json", "sources", {"mood": {"origin": "a\0b"}}, "expected the name of a folder"),
    ("plait.json", "recipe", [], "recipe is a list"),
    ("plait.json", "versions", {"torch": 3}, "versions.torch is 3"),
    ("config.json", "num_hidden_layers", 10**8, "num_hidden_layers in config.json is 100,000,000"),
    ("config.json", "num_hidden_layers", 3000, "has more than"),
    ("config.json", "hidden_size", 10**300, "a whole number of 997 bits"),
    ("config.json", "hidden_size", 2**40, "hidden_size in config.json is"),
    ("config.json", "vocab_size", 2**31 - 1, "the files hold"),
    ("config.json", "num_labels", 10**9, "num_labels in config.json"),
    ("config.json", "model_type", 5, "model_type"),
    ("config.json", "model_type", "../x", "not understood"),
    ("config.json", "architectures", [3], "architectures in config.json"),
    ("config.json", "id2label", {"x": "y"}, ""),
    ("tasks/mood/config.json", "hidden_size", 32, "another encoder"),
    ("tasks/mood/config.json", "num_hidden_layers", 10**8, "num_hidden_layers"),
    ("tasks/mood/config.json", "id2label", {"0": "a", "1": "b"}, "has 2 labels, plait.json 3"),
    ("tokenizer_config.json", "model_max_length", "\0", "model_max_length"),
    ("tokenizer_config.json", "model_max_length", -5, "model_max_length"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "key", "value", "said"), FIELDS, ids=[f"{n}-{f[1]}" for n, f in enumerate(FIELDS)]
)
def test_a_field_of_a_merged_folder(
    world: World, copy: Any, tmp_path: Path, file: str, key: str, value: Any, said: str
) -> None:
    target = copy("merged")
    edit(target / file, **{key: value})
    message = refused(commands(world, "merged", target, tmp_path)[0])
    assert said in message, message


TEXTS = {
    "nested": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "digits": '{"format": ' + "9" * 10_000 + "}",
    "nothing": "",
    "null byte": '{"a": "\\u0000"}\0',
    "latin": "é",
    "twice": '{"format": 1, "format": 1, "tasks": {}}',
    "NaN": '{"format": NaN, "tasks": {}}',
    "list": "[]",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    "file", ["plait.json", "config.json", "tasks/mood/config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_document_that_is_none(world: World, copy: Any, tmp_path: Path, file: str, name: str) -> None:
    target = copy("merged")
    (target / file).write_bytes(TEXTS[name].encode("latin-1"))
    for command in commands(world, "merged", target, tmp_path):
        outcome = run(*command)
        assert outcome.faults == [], outcome


RECIPES = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ) + "output: *i\n",
    "itself": "sources: &a\n  a: *a\noutput: o\n",
    "nested": "sources: " + "[" * 50_000,
    "date": "sources: {a: 2024-02-30}\noutput: o\n",
    "object": "sources: !!python/object/apply:os.system ['touch /tmp/x']\noutput: o\n",
    "digits": "sources: {a: x}\noutput: o\nrefine: " + "9" * 5000 + "\n",
    "null byte": "sources: {a: x}\noutput: 'o\0'\n",
    "key": "? {a: b}\n: c\n",
    "combine": "combine: [merge]\n",
    "binary": "sources: !!binary x\n",
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPES[name])
    for command in ("check", "run"):
        refused([command, tmp_path / "r.yaml"])


def test_a_date_is_the_text_that_it_is(world: World, tmp_path: Path) -> None:
    from plait.recipe import read_recipe

    (tmp_path / "r.yaml").write_text("sources: {2024-02-30: a}\nmethod: average\noutput: 2024-01-01\n")
    recipe = read_recipe(tmp_path / "r.yaml")
    assert (list(recipe.sources), recipe.output) == (["2024-02-30"], "2024-01-01")  # type: ignore[union-attr]


def test_aliases_may_be_used(tmp_path: Path) -> None:
    from plait.recipe import read_recipe

    (tmp_path / "r.yaml").write_text("sources:\n  a: &s {model: m, data: d.csv}\n  b: *s\noutput: o\n")
    assert len(read_recipe(tmp_path / "r.yaml").sources) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "front", ["base_model: 2024-02-30", "a: &a [*a]", "base_model: " + "[" * 5000, "x: " + "y" * 200_000]
)
def test_a_card_is_only_a_hint(world: World, copy: Any, tmp_path: Path, front: str) -> None:
    target = copy("mood")
    (target / "README.md").write_text(f"---\n{front}\n---\n# x\n")
    outcome = run(*commands(world, "mood", target, tmp_path)[2])
    assert (outcome.faults, outcome.code) == ([], 0), outcome


STORES: list[tuple[tuple[str, ...], Any, str]] = [
    (("texts", "count"), 10**12, ""),
    (("texts", "count"), 10**9, "cannot hold so many"),
    (("texts", "count"), -1, "texts.count is -1"),
    (("texts", "count"), 1.5, "texts.count is 1.5"),
    (("chunk",), 0, "chunk is 0"),
    (("chunk",), 10**11, "chunk is"),
    (("settings", "passes"), -3, "passes is -3"),
    (("settings", "passes"), "many", "not readable as a store"),
    (("settings", "surplus"), 1, "not readable as a store"),
    (("teachers",), {}, "teachers is a dict"),
    (("version",), 2, "version 2"),
]


@pytest.mark.parametrize(("keys", "value", "said"), STORES)
def test_a_record_of_a_store(
    world: World, copy: Any, tmp_path: Path, keys: tuple[str, ...], value: Any, said: str
) -> None:
    target = copy("store")
    content = json.loads((target / "store.json").read_text())
    owner = content
    for key in keys[:-1]:
        owner = owner[key]
    owner[keys[-1]] = value
    (target / "store.json").write_text(json.dumps(content))
    for command in commands(world, "store", target, tmp_path):
        assert said in refused(command)


def test_a_link_in_a_store_writes_nowhere(world: World, copy: Any, tmp_path: Path) -> None:
    target, elsewhere = copy("store"), tmp_path / "elsewhere"
    (target / "teachers").rename(elsewhere)
    (target / "teachers").symlink_to(elsewhere)
    command = commands(world, "store", target, tmp_path)[1]
    refused([*command, "--overwrite"], "teachers in the store links elsewhere")


def statistics(file: Path, change: Change) -> None:
    """Changes the tensors of a file of statistics and keeps its record."""
    from safetensors import safe_open

    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata)


def first(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return tensors[min(tensors)].reshape(-1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e-9])
def test_changed_statistics_are_refused(world: World, copy: Any, tmp_path: Path, value: float) -> None:
    target = copy("mood.safetensors")
    statistics(target, lambda tensors: first(tensors)[:1].fill_(value))
    for command in commands(world, "mood.safetensors", target, tmp_path):
        refused(command, "its content is not what was written; estimate them again")


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -1.0])
def test_statistics_without_a_checksum_are_looked_at(
    world: World, copy: Any, tmp_path: Path, value: float
) -> None:
    from plait.statistics.importance import Statistics, load_statistics

    target = copy("mood.safetensors")
    found = load_statistics(target)
    first(dict(found.tensors))[:1].fill_(value)
    Statistics(found.estimator, found.tensors, found.provenance).save(target)  # the checksum of what is wrong
    for command in commands(world, "mood.safetensors", target, tmp_path):
        refused(command, "negative, NaN or Inf")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("kind", "inside"), [("merged", "tasks/mood"), ("merged", "."), ("mood", "."), ("ensemble", ".")]
)
def test_weights_that_are_no_numbers_are_not_scored(
    world: World, copy: Any, tmp_path: Path, kind: str, inside: str, value: float
) -> None:
    target = copy(kind)
    file = target / inside / ("model.safetensors" if inside == "." else "head.safetensors")
    tensors = load_file(file)
    places = ("classifier.weight", "heads.out.weight", "bert.encoder.layer.0.output.dense.weight")
    name = next(name for name in places if name in tensors)
    tensors[name].fill_(value)
    save_file(tensors, file, {"format": "pt"})
    refused(commands(world, kind, target, tmp_path)[0], "NaN or Inf", "damaged")


def header(file: Path, change: Change) -> None:
    """Changes the header of a safetensors file."""
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    table = json.loads(data[8 : 8 + length])
    change(table)
    text = json.dumps(table).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize("metadata", [{"format": 1}, {"format": None}, ["pt"], "pt", {"a": {}}])
def test_metadata_are_texts(world: World, copy: Any, tmp_path: Path, metadata: Any) -> None:
    for kind, inside in (("mood", "."), ("merged", "."), ("merged", "tasks/mood")):
        target = copy(kind) if kind == "mood" or inside == "." else tmp_path / "merged"
        file = "model.safetensors" if inside == "." else "head.safetensors"
        header(target / inside / file, lambda table: table.update(__metadata__=metadata))
        command = commands(world, kind, target, tmp_path)[0]
        refused(command, file)
        if kind == "merged" and inside == ".":
            header(target / "model.safetensors", lambda table: table.update(__metadata__={"format": "pt"}))


def test_an_id_in_a_manifest_is_not_asked_for(
    world: World, copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = copy("merged")
    content = json.loads((target / "plait.json").read_text())
    content["sources"]["mood"]["origin"] = "nobody/nothing"
    (target / "plait.json").write_text(json.dumps(content))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    outcome = run(*[word for word in commands(world, "merged", target, tmp_path)[0] if word != "--quiet"])
    assert (outcome.faults, outcome.code) == ([], 0), outcome
    assert "source mood cannot be scored: nobody/nothing: not here" in outcome.err


def test_an_error_is_one_line_that_a_terminal_shows() -> None:
    assert as_line("a\x1b[31m\nb\u202e\ud800") == r"a\u001b[31m b\u202e\ud800"
    long = as_line("begin " + "x" * 5000 + "; do this")
    assert len(long) <= 600
    assert long.startswith("begin xx")
    assert long.endswith("; do this")
    assert printable("a\tb\nc") == "a\tb\nc"


def test_labels_are_shown_and_not_obeyed(world: World, tmp_path: Path, copy: Any) -> None:
    target = copy("mood")
    names = ["\x1b[31mred", "[bold]b[/bold]", "<script>x</script>|\n# heading"]
    edit(
        target / "config.json", id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    outcome = run("inspect", target)
    assert (outcome.faults, outcome.code) == ([], 0)
    assert "\\u001b[31mred" in outcome.out
    assert json.loads(run("inspect", target, "--json").out)["labels"] == names
    out = tmp_path / "out"
    assert (
        run("merge", f"mood={target}", f"type={world.root / 'type'}", "--method", "average", "-o", out).faults
        == []
    )
    card = (out / "README.md").read_text()
    assert "<script>" not in card.partition("```yaml")[0]
    assert "\n# heading" not in card
    assert "\x1b" not in card


def test_half_a_character_is_no_text(world: World, copy: Any, tmp_path: Path) -> None:
    file = tmp_path / "half.jsonl"
    file.write_text('{"text": "a \\ud800 b", "label": 0}\n{"text": "c", "label": 1}\n')
    refused(["evaluate", world.root / "type", "--data", file], str(file))
    target = copy("ensemble")
    edit(target / "tokenizer_config.json", note="\ud800")
    refused(["export", target, "-o", tmp_path / "out"], "tokenizer")


def test_nan_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    from plait.cli import render

    render.as_json({"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5]}


def test_every_command_works_offline(world: World, tmp_path: Path) -> None:
    """Each of these closes the sockets; whoever opened one would be at fault."""
    root, text = world.root, world.root / "mood.jsonl"
    quick = ["--epochs", "1", "--batch-size", "4", "--quiet"]
    every: list[list[object]] = [
        ["methods"], ["inspect", root / "mood"], ["inspect", root / "merged"], ["inspect", root / "store"],
        ["inspect", root / "ensemble"], ["inspect", root / "mood.safetensors"], ["check", root / "recipe.yaml"],
        ["run", root / "recipe.yaml", "--dry-run"], ["export", root / "merged", "--task", "mood", "-o", tmp_path / "a"],
        ["finetune", root / "mood", "--data", text, "-o", tmp_path / "b", *quick],
        ["ensemble", root / "mood", "--data", text, "--members", "2", "-o", tmp_path / "c", *quick],
        ["evaluate", root / "merged", "--data", f"mood={text}"],
    ]  # fmt: skip
    for command in every:
        outcome = run(*command, seconds=60)
        assert (outcome.faults, outcome.code) == ([], 0), outcome


def test_special_files_are_not_waited_for(world: World, copy: Any, tmp_path: Path) -> None:
    for name in ("config.json", "plait.json", "model.safetensors", "tokenizer.json"):
        target = copy("merged") if not (tmp_path / "merged").exists() else tmp_path / "merged"
        kept = (target / name).read_bytes()
        (target / name).unlink()
        os.mkfifo(target / name)
        outcome = run(*commands(world, "merged", target, tmp_path)[0])
        assert outcome.faults == [], (name, outcome)
        (target / name).unlink()
        (target / name).write_bytes(kept)
