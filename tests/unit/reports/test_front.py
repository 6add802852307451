"""Model cards as hubs read them: bases, licence, scores; and no place on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import plait
from plait.checkpoints.lineage import lineage
from plait.reports.cards import (
    exported_card,
    exported_ensemble_card,
    finetuned_card,
    model_card,
    student_card,
)
from plait.reports.front import common_licence, licence_told, portable
from plait.reports.record import BASE, Manifest, Task
from tests.conftest import write_rows
from tests.models import save, texts, tiny

MIT = {"origin": "/abs/ckpt/x", "digest": "0" * 32, "hub": "owner/base", "license": "mit"}


def manifest(*sources: dict[str, Any]) -> Manifest:
    named = dict(zip("xyz", sources, strict=False))
    task = Task("mood", "BertForSequenceClassification", "sequence_classification", None, ("a", "b"), tuple(named))
    scores = {"tasks": {"mood": {"primary": "accuracy", "metrics": {"accuracy": 0.5, "macro_f1": 0.25, "odd": 1.0},
                                 "relative": None, "examples": 4}}}  # fmt: skip
    recipe = {
        "sources": {name: {"model": source["origin"]} for name, source in named.items()},
        "method": {"name": "regmean"},
        "output": "/abs/out/merged",
    }
    base = {BASE: {"origin": "/abs/base", "digest": ""}}
    return Manifest({"mood": task}, {**named, **base}, recipe, {"plait": "1"}, scores=scores)


def test_a_merge() -> None:
    text = model_card(manifest(MIT, {**MIT, "hub": "owner/other"}))
    card = ModelCard(text)
    assert card.data.base_model == ["owner/base", "owner/other"]
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert card.data.license == "mit"
    assert card.data.library_name == "plait"
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"accuracy": 0.5, "f1": 0.25}
    assert card.data.model_name == "merged"
    assert "/abs" not in text
    assert "| x | x | 0000" in text


def test_an_export() -> None:
    text = exported_card(manifest(MIT), "mood", "plain")
    card = ModelCard(text)
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.base_model == "owner/base"
    assert card.data.model_name == "plain"
    assert 'pipeline("text-classification", model="plain")' in text
    assert "/abs" not in text


def test_licences() -> None:
    assert common_licence({"a": MIT, "b": MIT}) == "mit"
    other = {**MIT, "license": "apache-2.0"}
    assert common_licence({"a": MIT, "b": other}) is None
    assert "a: `mit`, b: `apache-2.0`" in licence_told({"a": MIT, "b": other})
    assert "that of b is not known" in licence_told({"a": MIT, "b": {}})
    card = ModelCard(model_card(manifest(MIT, other)))
    assert card.data.license is None
    assert "different ones" in card.text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/home/me/data/train.csv", "train.csv"),
        ("/home/me/data.csv@train", "data.csv@train"),
        ("C:\\Users\\me\\m", "m"),
        ("~/m", "m"),
        ("ckpt/m", "ckpt/m"),
        ("owner/name", "owner/name"),
        (["/a/b", {"path": "/c/d"}], ["b", {"path": "d"}]),
        (3, 3),
    ],
)
def test_places_are_left_out(given: Any, shown: Any) -> None:
    assert portable(given) == shown


def test_a_fine_tuned_checkpoint() -> None:
    report = {
        "base": "owner/base", "start": {"hub": "owner/base", "license": "mit"}, "head": "token_classification",
        "data": {"source": "/abs/train.jsonl", "examples": 9}, "options": {"epochs": 1.0},
        "validation": {"accuracy": 0.75}, "versions": {"torch": "2"},
    }  # fmt: skip
    text = finetuned_card(report, "mine")
    card = ModelCard(text)
    assert (card.data.base_model, card.data.license) == ("owner/base", "mit")
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert card.data.pipeline_tag == "token-classification"
    assert card.data.eval_results[0].metric_value == 0.75
    assert "9 examples of train.jsonl" in text


def ensemble(**changes: Any) -> dict[str, Any]:
    return {
        "head_kind": "sequence_classification", "members": 2, "shared_layers": None, "plain": True,
        "base": "owner/base",
        "sources": [{"origin": "owner/base", "digest": "", "hub": "owner/base", "license": "mit"}],
        "recipe": {"base": "owner/base", "method": {"name": "soup"}, "output": "/abs/ens"},
        "data": {"examples": 5}, **changes,
    }  # fmt: skip


def test_an_exported_ensemble() -> None:
    text = exported_ensemble_card(ensemble(), "plain", "All members")
    card = ModelCard(text)
    assert (card.data.base_model, card.data.license) == ("owner/base", "mit")
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert "# plain" in text
    assert "None is set" in exported_ensemble_card({}, "plain", "Member 0")


def test_merged_members_are_a_merge() -> None:
    recipe = {"sources": ["/abs/a"], "method": {"name": "soup"}, "output": "o"}
    card = ModelCard(exported_ensemble_card(ensemble(recipe=recipe), "plain", "All members"))
    assert card.data.to_dict()["base_model_relation"] == "merge"


def test_a_student_names_its_start_alone() -> None:
    report = {
        "teachers": {"one": {**MIT, "labels": ["a"]}, "two": {**MIT, "labels": ["b"]}}, "labels": ["a", "b"],
        "start": {"origin": "/abs/base", "hub": "owner/start", "license": "mit"},
        "recipe": {"output": "/abs/student", "objective": {"name": "muka"}, "text": {"path": "/abs/t.txt"}},
        "data": {"texts": 7},
        "who_taught_what": {"teachers": {n: {"share": 0.5} for n in ("one", "two")},
                            "labels": {"a": {"one": 4}, "b": {"one": 1, "two": 2}}},
        "epochs": [{"epoch": 1.0, "agreement": 0.5}, {"epoch": 2.0, "agreement": 0.75, "kept": True}],
        "forward_equivalents": {"teachers": 1, "student": 2}, "versions": {"plait": "1"},
        "validation": {"accuracy": 0.5},
    }  # fmt: skip
    text = student_card(report)
    card = ModelCard(text)
    assert card.data.base_model == "owner/start"
    assert card.data.license == "mit"
    assert "| b | 1 | 2 |" in text
    assert "| 2 | 0.75 | yes |" in text
    assert "/abs" not in text


def test_where_a_checkpoint_comes_from(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model: owner/base\n---\n# x\n")
    assert lineage(str(tmp_path), tmp_path) == {"hub": "owner/base", "license": "mit"}
    assert lineage("owner/own", tmp_path) == {"hub": "owner/own", "license": "mit"}
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n")
    assert lineage(tmp_path, tmp_path) == {"license": "mine"}
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    (tmp_path / "config.json").write_text(json.dumps({"license": "bsd"}))
    assert lineage(tmp_path, tmp_path, "/abs/base") == {"license": "bsd"}


def test_fine_tuning_and_merging_hand_it_on(tmp_path: Path) -> None:
    base = save(tiny("bert", "body"), tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: mit\nbase_model: owner/base\n---\n")
    rows = [{"text": text, "label": "yes" if at % 2 else "no"} for at, text in enumerate(texts(12))]
    data = write_rows(tmp_path / "train.jsonl", rows)
    for name, length in (("a", 24), ("b", 30)):
        plait.finetune(base, data, tmp_path / name, epochs=1, checkpoints=False, max_length=length)
    card = ModelCard.load(tmp_path / "a" / "README.md")
    assert (card.data.base_model, card.data.license) == ("owner/base", "mit")
    tokenizer = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == 24
    merged = plait.merge([tmp_path / "a", tmp_path / "b"], out=tmp_path / "m", method="average")
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert (card.data.base_model, card.data.license) == ("owner/base", "mit")
    assert str(tmp_path) not in card.content
    assert merged.tokenizer.model_max_length == 30  # no task is cut shorter than it was trained
    plait.export(merged, tmp_path / "plain", task="a")
    assert ModelCard.load(tmp_path / "plain" / "README.md").data.license == "mit"
