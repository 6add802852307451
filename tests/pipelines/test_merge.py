"""The merge, through the command line and through Python, on small real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

import plait
from plait.cli import invoke
from tests.models import body, texts

Paths = dict[str, str]


def command(sources: Paths, data: Paths | None, out: Path, *more: str) -> list[str]:
    named = [f"--data={name}={file}" for name, file in (data or {}).items()]
    return ["merge", *(f"{n}={p}" for n, p in sources.items()), *named, "-o", str(out), *more]


@pytest.fixture
def merged(sources: Paths, data: Paths, tmp_path: Path) -> Any:
    return plait.merge(sources, data=data, method="fisher", importance="mask_nodes", out=tmp_path / "merged")


def body_of(path: str) -> dict[str, torch.Tensor]:
    state = AutoModelForSequenceClassification.from_pretrained(path).state_dict()
    return {name.removeprefix("bert."): t for name, t in state.items() if name.startswith("bert.")}


def test_average_is_the_mean_of_the_bodies(sources: Paths, tmp_path: Path) -> None:
    assert invoke(command(sources, None, tmp_path / "m", "--method", "average")) == 0
    found = body(tmp_path / "m")
    bodies = [body_of(path) for path in sources.values()]
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, torch.stack([b[name] for b in bodies]).mean(0), rtol=1e-6, atol=1e-7
        )
    assert set(found) == set(bodies[0])


def test_weights_decide(sources: Paths, tmp_path: Path) -> None:
    two = {name: sources[name] for name in ("mood", "type")}
    plait.merge(two, method="average", weights={"mood": 3, "type": 1}, out=tmp_path / "m")
    found = body(tmp_path / "m")
    first, second = (body_of(path) for path in two.values())
    name = "encoder.layer.0.output.dense.weight"
    torch.testing.assert_close(found[name], 0.75 * first[name] + 0.25 * second[name])


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_informed_methods_run_from_the_command_line(
    sources: Paths, data: Paths, tmp_path: Path, method: str
) -> None:
    assert invoke(command(sources, data, tmp_path / "m", "--method", method, "--quiet")) == 0
    found = body(tmp_path / "m")
    average = {n: torch.stack([body_of(p)[n] for p in sources.values()]).mean(0) for n in found}
    assert any(not torch.allclose(found[n], average[n], atol=1e-4) for n in found)


@pytest.mark.parametrize("importance", ["mask-nodes", "diagonal", "block-traces"])
@pytest.mark.parametrize("normalize", ["none", "mean", "l2", "tensor"])
def test_every_importance_and_normalisation(
    sources: Paths, data: Paths, tmp_path: Path, importance: str, normalize: str
) -> None:
    more = ("--method", "fisher", "--importance", importance, "--normalize", normalize, "--quiet")
    assert invoke(command(sources, data, tmp_path / "m", *more)) == 0
    manifest = json.loads((tmp_path / "m" / "plait.json").read_text())
    assert manifest["recipe"]["method"]["normalize"] == normalize
    assert manifest["statistics"]["mood"]["estimator"] == importance.replace("-", "_")


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare"])
def test_methods_that_need_a_base(sources: Paths, tmp_path: Path, method: str) -> None:
    from tests.models import save, tiny

    base = save(tiny("bert", "body", seed=0, drift=0.0), tmp_path / "base")
    assert (
        invoke(command(sources, None, tmp_path / "m", "--method", method, "--base", str(base), "--quiet"))
        == 0
    )
    assert plait.load(str(tmp_path / "m")).predict(texts(2))["mood"][0]["label"].startswith("sequence-")


def test_slerp_of_two(sources: Paths, tmp_path: Path) -> None:
    two = {name: sources[name] for name in ("mood", "type")}
    assert invoke(command(two, None, tmp_path / "m", "--method", "slerp", "--quiet")) == 0


def test_one_encoder_pass_equals_each_task_alone(merged: Any) -> None:
    lines = texts(9, seed=3)
    together = merged.predict(lines)
    assert set(together) == {"mood", "type", "value"}
    for task in merged.tasks:
        alone = merged.predict(lines, task=task, batch_size=2)
        for a, b in zip(together[task], alone, strict=True):
            key = "value" if task == "value" else "score"
            assert a[key] == pytest.approx(b[key], abs=1e-5)
            assert a.get("label") == b.get("label")


def test_encoder_runs_once_for_all_tasks(merged: Any) -> None:
    calls = []
    handle = merged.encoder.register_forward_hook(lambda *_: calls.append(1))
    merged.predict(texts(4), batch_size=4)
    handle.remove()
    assert len(calls) == 1


def test_tasks_share_memory_and_work_in_pipelines(merged: Any) -> None:
    mood, kind = merged.task("mood"), merged.task("type")
    assert mood.bert.encoder is kind.bert.encoder is merged.encoder.encoder
    assert mood.bert.pooler is not kind.bert.pooler
    classify = pipeline("text-classification", model=mood, tokenizer=merged.tokenizer)
    line = texts(1)[0]
    assert classify(line)[0]["label"] == merged.predict(line, task="mood")[0]["label"]


def test_body_is_an_ordinary_checkpoint(merged: Any) -> None:
    model = AutoModel.from_pretrained(merged.path)
    torch.testing.assert_close(
        model.state_dict()["pooler.dense.weight"], merged.encoder.state_dict()["pooler.dense.weight"]
    )


def test_export_is_plain(merged: Any, tmp_path: Path) -> None:
    assert invoke(["export", str(merged.path), "--task", "type", "-o", str(tmp_path / "plain")]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    lines = texts(3)
    with torch.no_grad():
        logits = model(**tokenizer(lines, padding=True, return_tensors="pt")).logits
        wanted = merged.task("type")(**merged.tokenizer(lines, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(logits, wanted)
    assert not (tmp_path / "plain" / "plait.json").exists()


def test_evaluate_says_absolute_and_relative(
    merged: Any, data: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [f"--data={name}={file}" for name, file in data.items()]
    assert invoke(["evaluate", str(merged.path), *named, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["tasks"]) == set(data)
    mood = found["tasks"]["mood"]
    assert mood["primary"] == "accuracy"
    assert mood["examples"] == 12
    assert 0 <= mood["metrics"]["accuracy"] <= 1
    own = mood["sources"]["mood"]["accuracy"]
    assert mood["relative"] == (pytest.approx(mood["metrics"]["accuracy"] / own) if own else None)
    assert invoke(["evaluate", str(merged.path), *named, "--quiet"]) == 0
    assert "relative" in capsys.readouterr().out


def test_evaluate_scores_the_source_itself_as_the_source(sources: Paths, data: Paths, tmp_path: Path) -> None:
    same = plait.merge({"mood": sources["mood"]}, method="average", out=tmp_path / "m")
    found = plait.evaluate(same, {"mood": data["mood"]})
    assert found.tasks["mood"].metrics == found.tasks["mood"].sources["mood"]
    plain = plait.evaluate(sources["mood"], data["mood"])
    assert plain.tasks["model"].metrics == found["mood"]


def test_recipe_and_python_and_command_line_agree(
    sources: Paths, data: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["combine: merge", "sources:"]
    lines += [f"  {name}: {{model: {sources[name]}, data: {data[name]}}}" for name in sources]
    lines += [
        "method: {name: fisher, importance: mask_nodes, mapping: paper, labels: given, normalize: none, examples: 256}"
    ]
    (tmp_path / "recipe.yaml").write_text("\n".join([*lines, f"output: {tmp_path / 'a'}"]))
    assert invoke(["check", str(tmp_path / "recipe.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "fisher"
    assert invoke(["run", str(tmp_path / "recipe.yaml"), "--dry-run"]) == 0
    assert not (tmp_path / "a").exists()
    assert invoke(["run", str(tmp_path / "recipe.yaml"), "--quiet"]) == 0
    options = {"importance": "mask_nodes", "mapping": "paper", "normalize": "none"}
    plait.merge(sources, data=data, method="fisher", out=tmp_path / "b", **options)
    more = ("--method", "fisher", "--importance", "mask-nodes", "--mapping", "paper", "--normalize", "none")
    assert invoke(command(sources, data, tmp_path / "c", *more)) == 0
    first, *others = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_shared_statistics_replace_data(sources: Paths, data: Paths, tmp_path: Path) -> None:
    two = {name: sources[name] for name in ("mood", "type")}
    for name, path in two.items():
        arguments = [
            path,
            "--data",
            data[name],
            "--importance",
            "mask-nodes",
            "-o",
            str(tmp_path / f"{name}.safetensors"),
        ]
        assert invoke(["estimate", *arguments, "--quiet"]) == 0
    shared = [f"--statistics={name}={tmp_path / name}.safetensors" for name in two]
    more = ("--method", "fisher", "--importance", "mask-nodes")
    assert invoke(command(two, None, tmp_path / "a", *more, *shared)) == 0
    assert invoke(command(two, {name: data[name] for name in two}, tmp_path / "b", *more)) == 0
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_statistics_are_reused_when_nothing_changed(
    sources: Paths, data: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plait.statistics import cache as statistics

    first = plait.estimate(sources["mood"], data["mood"], importance="mask_nodes")
    monkeypatch.setattr(statistics, "estimated", lambda *_: pytest.fail("estimated again"))
    again = plait.estimate(sources["mood"], data["mood"], importance="mask_nodes", batch_size=3)
    assert torch.equal(first.heads, again.heads)
    with pytest.raises(pytest.fail.Exception, match="estimated again"):
        plait.estimate(sources["mood"], data["mood"], importance="mask_nodes", labels="exact")


def test_manifest_and_card_record_the_recipe(merged: Any, sources: Paths) -> None:
    manifest = json.loads((merged.path / "plait.json").read_text())
    assert list(manifest["sources"]) == list(sources)
    assert all(len(source["digest"]) == 32 for source in manifest["sources"].values())
    assert manifest["recipe"]["method"]["importance"] == "mask_nodes"
    assert {"plait", "torch", "transformers"} <= set(manifest["versions"])
    card = (merged.path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: plait")
    assert "importance: mask_nodes" in card


def test_sources_of_one_task_are_aligned_by_label(tmp_path: Path) -> None:
    from tests.models import save, tiny

    model = tiny("bert", "sequence", seed=1, labels=3)
    save(model, tmp_path / "one")
    turn = [2, 0, 1]
    names = dict(model.config.id2label)
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[turn].clone())
        model.classifier.bias.copy_(model.classifier.bias[turn].clone())
    model.config.id2label = {i: names[t] for i, t in enumerate(turn)}
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    save(model, tmp_path / "two")
    both = {"one": str(tmp_path / "one"), "two": str(tmp_path / "two")}
    soup = plait.merge(both, tasks={"one": "mood", "two": "mood"}, method="average", out=tmp_path / "soup")
    assert soup.tasks == ("mood",)
    original = AutoModelForSequenceClassification.from_pretrained(both["one"])
    torch.testing.assert_close(soup.task("mood").classifier.weight, original.classifier.weight)
    assert soup.task("mood").config.id2label == original.config.id2label


def test_inspect_and_methods(merged: Any, sources: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["inspect", str(merged.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "merged"
    assert invoke(["inspect", sources["mood"]]) == 0
    assert "BertForSequenceClassification" in capsys.readouterr().out
    assert invoke(["methods", "--json"]) == 0
    assert {"average", "fisher", "regmean", "task_arithmetic", "ties", "dare", "slerp"} <= set(
        json.loads(capsys.readouterr().out)
    )
    assert invoke(["methods", "fisher"]) == 0
    assert "Σ" in capsys.readouterr().out


def test_inputs_are_untouched(sources: Paths, data: Paths, tmp_path: Path) -> None:
    def stamp() -> dict[str, bytes]:
        return {str(f): f.read_bytes() for p in sources.values() for f in Path(p).iterdir()}

    before = stamp()
    plait.merge(sources, data=data, out=tmp_path / "m")
    assert stamp() == before


def test_dtype_and_shards(sources: Paths, tmp_path: Path) -> None:
    merged = plait.merge(
        sources, method="average", dtype="bfloat16", max_shard_size="8KB", out=tmp_path / "m"
    )
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 1
    assert merged.encoder.dtype == torch.bfloat16
    assert AutoModel.from_pretrained(tmp_path / "m").dtype == torch.bfloat16


def test_statistics_weigh_parameters_by_name_wherever_they_come_from(
    sources: Paths, data: Paths, tmp_path: Path
) -> None:
    from plait.statistics.importance import load_statistics

    found = plait.estimate(sources["mood"], data["mood"], out=tmp_path / "s.safetensors")
    for statistics in (found, load_statistics(tmp_path / "s.safetensors")):
        weights = statistics.of("bert.encoder.layer.1.attention.self.query.weight")
        assert weights is not None
        torch.testing.assert_close(weights[:, 0], found.heads[1].repeat_interleave(4))
        neurons = statistics.of("encoder.layer.0.intermediate.dense.bias")
        assert neurons is not None
        torch.testing.assert_close(neurons, found.neurons[0])
    assert "shapes" not in found.facts
