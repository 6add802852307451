"""What transformers opens of a result without Plait is what Plait says it is: the top, each task, an export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

import plait
from plait.checkpoints.checkpoint import open_checkpoint
from plait.errors import MergeError
from tests.decoders import WORDS, decoder
from tests.models import _AUTO, save, texts, tiny, tiny_config

LINES = texts(4, seed=5)
FAMILIES = ("bert", "roberta", "distilbert", "albert", "modernbert", "deberta-v2")


def logits(cls: Any, folder: str | Path, lines: list[str] = LINES) -> torch.Tensor:
    """Returns what transformers alone makes of a folder; a parameter that is drawn at random is an error."""
    model, told = cls.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"], told["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return torch.cat([model.eval()(**tokenizer(t, return_tensors="pt"))[0].flatten() for t in lines])


@pytest.fixture
def merged(sources: dict[str, str], tmp_path: Path) -> Any:
    return plait.merge(sources, method="average", out=tmp_path / "m")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", ["5GB", "12KB"])
def test_every_task_opens_by_itself(family: str, shards: str, tmp_path: Path) -> None:
    heads = ("sequence", "token", "body")
    made = {h: str(save(tiny(family, h, seed=i), tmp_path / h)) for i, h in enumerate(heads)}
    merged = plait.merge(made, method="average", out=tmp_path / "m", max_shard_size=shards)
    for head in heads:
        plain = plait.export(merged, tmp_path / f"plain-{head}", task=head)
        apart, whole = logits(_AUTO[head], merged.path / "tasks" / head), logits(_AUTO[head], plain)
        torch.testing.assert_close(apart, whole, rtol=0, atol=1e-6)  # files align weights differently in memory
    AutoModel.from_pretrained(merged.path)


def test_task_folders_take_no_space_and_move_with_the_whole(merged: Any, tmp_path: Path) -> None:
    before = logits(AutoModelForSequenceClassification, merged.path / "tasks" / "mood")
    said = merged.predict(LINES, task="mood")
    files = [f for f in (merged.path / "tasks").rglob("*") if f.is_file() and not f.is_symlink()]
    assert {f.name for f in files} == {"config.json", "head.safetensors", "model.safetensors.index.json"}
    shutil.move(merged.path, tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "copied")  # links become files
    for place in ("elsewhere", "copied"):
        found = logits(AutoModelForSequenceClassification, tmp_path / place / "tasks" / "mood")
        assert torch.equal(found, before)
        assert plait.load(tmp_path / place).predict(LINES, task="mood") == said


def test_a_task_is_a_source(merged: Any) -> None:
    found = open_checkpoint(merged.path / "tasks" / "type")
    assert found.kind == "sequence_classification"
    assert torch.equal(found.read(found.head["classifier.bias"]), merged.task("type").classifier.bias)


def test_a_merge_with_one_task_is_its_model(sources: dict[str, str], tmp_path: Path) -> None:
    one = plait.merge(
        {"a": sources["mood"], "b": sources["mood"]}, tasks={"a": "t", "b": "t"}, method="average", out=tmp_path / "m"
    )
    source = logits(AutoModelForSequenceClassification, sources["mood"])
    for place in (one.path, one.path / "tasks" / "t"):
        torch.testing.assert_close(logits(AutoModelForSequenceClassification, place), source)
    answer = pipeline("text-classification", model=str(one.path))(LINES[0])[0]
    assert answer["label"] == one.predict(LINES[0], task="t")[0]["label"]


def test_heads_that_learned_are_the_heads_at_the_top(sources: dict[str, str], tmp_path: Path) -> None:
    both = {"a": sources["mood"], "b": sources["mood"]}
    data = {name: {"text": texts(24, seed=7)} for name in both}
    one = plait.merge(
        both, tasks={"a": "t", "b": "t"}, method="average", data=data, refine=1, refine_heads=True, refine_rate=0.01,
        align_heads="none", out=tmp_path / "m",
    )  # fmt: skip
    plain = plait.export(one, tmp_path / "plain")
    for place in (one.path, one.path / "tasks" / "t"):
        found = logits(AutoModelForSequenceClassification, place)
        assert torch.equal(found, logits(AutoModelForSequenceClassification, plain))


def test_the_encoder_opened_as_a_classifier_says_what_to_open(merged: Any) -> None:
    answer = pipeline("text-classification", model=str(merged.path))(LINES[0])[0]
    assert answer["label"] in {"untrained head: open tasks/mood", "untrained head: open tasks/type"}


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "slerp", "ties", "iso", "regmean"])
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("qwen2", False), ("gpt2", True)])
def test_a_language_model_merged_with_itself_is_itself(family: str, tied: bool, method: str, tmp_path: Path) -> None:
    path = decoder(tmp_path / "lm", AutoModelForCausalLM, family, pad="[PAD]", tie_word_embeddings=tied)
    base = decoder(tmp_path / "base", AutoModelForCausalLM, family, seed=2, pad="[PAD]", tie_word_embeddings=tied)
    more: dict[str, Any] = {"base": base} if method in {"task_arithmetic", "ties", "iso"} else {}
    if method == "regmean":
        more["data"] = {name: {"text": [" ".join(WORDS[3:8])] * 8} for name in "xy"}
    out = plait.merge({"x": path, "y": path}, method=method, out=tmp_path / "m", align_heads="none", refine=0, **more)
    lines = [" ".join(WORDS[3:])]
    source = logits(AutoModelForCausalLM, path, lines)
    plain = plait.export(out, tmp_path / "plain", task="y")
    for place in (out.path, out.path / "tasks" / "x", plain):
        found = logits(AutoModelForCausalLM, place, lines)
        if not more.get("base"):  # these rules do not give equal sources back
            torch.testing.assert_close(found, source, atol=1e-4, rtol=1e-3)
        assert (place / "generation_config.json").is_file()


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_language_models_keep_their_head(family: str, tmp_path: Path) -> None:
    made = {}
    for seed in (1, 2):
        torch.manual_seed(0)
        model = AutoModelForMaskedLM.from_config(tiny_config(family, "body"))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.005)
        made[f"s{seed}"] = str(save(model, tmp_path / f"s{seed}"))
    out = plait.merge(made, method="average", out=tmp_path / "m")
    models = [AutoModelForMaskedLM.from_pretrained(path).state_dict() for path in made.values()]
    found, told = AutoModelForMaskedLM.from_pretrained(out.path, output_loading_info=True)
    assert not told["missing_keys"]
    for name, tensor in found.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([m[name] for m in models]).mean(0))


def test_a_language_model_beside_a_classifier(tmp_path: Path) -> None:
    classifier = save(tiny("bert", "sequence", seed=1), tmp_path / "c")
    model = AutoModelForMaskedLM.from_config(tiny_config("bert", "body"))
    model.bert.load_state_dict(tiny("bert", "body", seed=2).state_dict(), strict=False)
    language = save(model, tmp_path / "l")
    out = plait.merge({"c": str(classifier), "l": str(language)}, method="average", out=tmp_path / "m")
    head = AutoModelForMaskedLM.from_pretrained(language).cls.state_dict()
    for place in (out.path / "tasks" / "l", plait.export(out, tmp_path / "plain", task="l")):
        found, told = AutoModelForMaskedLM.from_pretrained(place, output_loading_info=True)
        assert not told["missing_keys"]
        for name, tensor in found.cls.state_dict().items():
            if "decoder.weight" not in name:
                torch.testing.assert_close(tensor, head[name])
    logits(AutoModelForSequenceClassification, out.path / "tasks" / "c")


def test_heads_that_cannot_become_one_are_refused(tmp_path: Path) -> None:
    one = decoder(tmp_path / "a", AutoModelForCausalLM, "llama", tie_word_embeddings=False)
    other = decoder(tmp_path / "b", AutoModelForCausalLM, "llama", tie_word_embeddings=True)
    with pytest.raises(MergeError, match=r"tie_word_embeddings differs \(x: False, y: True\)"):
        plait.merge({"x": one, "y": other}, method="average", out=tmp_path / "m")


def test_what_is_left_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(tiny("bert", "body"), tmp_path / "a")
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, "dense.weight": torch.zeros(4, 16)}, folder / "model.safetensors", {"format": "pt"})
    with caplog.at_level("WARNING", "plait"):
        plait.merge({"a": str(folder)}, method="average", out=tmp_path / "m")
    assert "a: dense.weight are no part of a BertModel: left out" in caplog.text


def test_tokenizers_are_copied_byte_for_byte(tmp_path: Path) -> None:
    made = {}
    for name in ("a", "b"):
        folder = save(tiny("bert", "sequence", seed=ord(name), labels=2), tmp_path / name)
        file = folder / "tokenizer_config.json"
        content = json.loads(file.read_text())
        content.pop("backend", None)  # as an earlier transformers saves a tokenizer without a class of its own
        file.write_text(json.dumps({**content, "tokenizer_class": "PreTrainedTokenizerFast"}))
        (folder / "special_tokens_map.json").write_text(json.dumps({"unk_token": "[UNK]"}))
        made[name] = str(folder)
    rows = {"text": texts(8), "label": ["x", "y"] * 4}
    merged = plait.merge(made, method="average", out=tmp_path / "m")
    plait.export(merged, tmp_path / "plain", task="a")
    plait.finetune(made["a"], rows, tmp_path / "f", epochs=1)
    plait.amalgamate(made, texts=rows["text"], student=made["a"], out=tmp_path / "s", epochs=1)
    plait.ensemble(made["a"], data=rows, out=tmp_path / "e", members=2, epochs=1, batch_size=4)
    plait.export(tmp_path / "e", tmp_path / "one", member=0)
    for place in ("m", "m/tasks/b", "plain", "f", "s", "e", "one"):
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            found = (tmp_path / place / name).read_bytes()
            wanted = (tmp_path / "a" / name).read_bytes()
            if place in {"e", "one"} and name == "tokenizer_config.json":  # an ensemble's length limit is its own
                assert json.loads(found) | {"model_max_length": 64} == json.loads(wanted), (place, name)
            else:
                assert found == wanted, (place, name)
