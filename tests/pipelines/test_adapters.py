"""Merges of adapter folders: as if each had been merged into its base before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait import api
from plait.checkpoints.checkpoint import open_checkpoint
from plait.cli import invoke
from plait.errors import MergeError
from tests.models import body, save, tiny
from tests.unit.checkpoints.test_adapters import TARGETS, moved

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of a base, two adapters with heads of their own, and the models that PEFT makes of them."""
    folder = tmp_path_factory.mktemp("adapters")
    save(tiny("bert", "body", drift=0.0), folder / "base")
    for seed, (name, labels) in enumerate({"a": 2, "b": 3}.items()):
        model = type(tiny("bert")).from_pretrained(folder / "base", num_labels=labels)
        config = peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=TARGETS)
        trained = moved(peft.get_peft_model(model, config), seed)
        trained.save_pretrained(folder / f"lora-{name}")
        save(trained.merge_and_unload(), folder / f"full-{name}")
    return folder


def sources(folder: Path, kind: str) -> dict[str, Any]:
    return {name: str(folder / f"{kind}-{name}") for name in "ab"}


@pytest.mark.parametrize("method", ["average", "ties", "slerp", "iso"])
def test_adapters_merge_as_the_models_that_they_make(method: str, folders: Path, tmp_path: Path) -> None:
    made = {
        kind: plait.merge(sources(folders, kind), base=folders / "base", method=method, out=tmp_path / kind)
        for kind in ("lora", "full")
    }
    mine, theirs = body(tmp_path / "lora"), body(tmp_path / "full")
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    for task in ("a", "b"):
        left, right = (merged.task(task).classifier.weight for merged in made.values())
        assert torch.equal(left, right)
    assert len(made["lora"].predict(["the film is good"])["b"]) == 1


def test_on_the_shell_the_recorded_base_serves_rules_that_need_one(folders: Path, tmp_path: Path, capsys) -> None:
    given = [f"{name}={place}" for name, place in sources(folders, "lora").items()]
    assert invoke(["merge", *given, "--method", "task_arithmetic", "-o", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out/plait.json").read_text())
    assert set(record["sources"]) == {"a", "b", "(base)"}
    assert record["sources"]["a"]["digest"] == open_checkpoint(folders / "lora-a").digest
    assert (tmp_path / "out/tokenizer.json").is_file()
    capsys.readouterr()


def test_a_plan_counts_what_is_read_and_names_the_base(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        json.dumps({"sources": sources(folders, "lora"), "method": "ties", "output": str(tmp_path / "out")})
    )
    found = api.check(tmp_path / "recipe.yaml")
    assert found["base"] == str(folders / "base")
    assert found["megabytes_read"] > 0


def test_a_source_may_name_its_own_base(folders: Path, tmp_path: Path) -> None:
    lost = Path(shutil.copytree(folders / "lora-a", tmp_path / "lost"))
    file = lost / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "base"}))
    given = {"a": {"model": str(lost), "base": str(folders / "base")}, "b": str(folders / "full-b")}
    assert plait.merge(given, method="average", out=tmp_path / "out").tasks == ("a", "b")


def test_adapters_of_different_bases_do_not_merge(folders: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folders / "lora-b", tmp_path / "lora-b"))
    stranger = save(tiny("bert", "body", drift=0.0, base_seed=9), tmp_path / "stranger")
    file = other / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(stranger)}))
    with pytest.raises(MergeError, match=r"a and b do not come from one base .*; b records .*stranger"):
        plait.merge({"a": folders / "lora-a", "b": other}, method="average", out=tmp_path / "out")


def test_statistics_and_scores_take_adapters(folders: Path, tmp_path: Path) -> None:
    rows = {"text": ["good film", "bad song", "the food"], "label": [0, 1, 0]}
    merged = plait.merge(
        sources(folders, "lora"), data={"a": rows, "b": rows}, method="regmean", evaluate={"a": rows},
        out=tmp_path / "out",
    )  # fmt: skip
    assert set(merged.manifest.scores["tasks"]) == {"a"}
    assert plait.evaluate(str(folders / "lora-a"), rows).to_dict()
