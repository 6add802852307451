"""Language models go through the whole merge, by data and without; the result opens as what its sources are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, pipeline

import plait
from plait.cli import invoke
from plait.errors import DataError, MergeError, RecipeError, SourceError
from tests.languages import MIXTURES, is_seq2seq, save_language, tiny_language, write_texts

MATH = ["good film", "the film was great news", "a awful sport", "science"]
CODE = ["bad news the the film", "sport was a film", "great", "the a was bad film news"]
TARGETS = ["bad", "news", "the a", "good good film"]


class World:
    """Two language models of one base, and texts of each."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.base = save_language(name, folder / "base", drift=0.0)
        self.sources = {
            task: save_language(name, folder / task, seed=seed) for seed, task in enumerate(("math", "code"), 1)
        }
        targets = TARGETS if is_seq2seq(name) else None
        self.data = {
            "math": write_texts(folder / "math.jsonl", MATH, targets),
            "code": write_texts(folder / "code.jsonl", CODE, targets),
        }

    def merge(self, **settings: Any) -> Any:
        data = self.data if settings.get("method") in ("fisher", "regmean", None) else None
        return plait.merge(self.sources, data=data, out=self.folder / "out", overwrite=True, **settings)

    def opened(self) -> Any:
        auto = AutoModelForSeq2SeqLM if is_seq2seq(self.name) else AutoModelForCausalLM
        model, told = auto.from_pretrained(self.folder / "out", output_loading_info=True)
        assert not any(told.values()), told
        return model


@pytest.fixture(scope="module", params=["llama", "llama-tied", "gpt2", "t5", "t5-gated", "gemma3_text"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "average"},
        {"method": "fisher", "importance": "mask-nodes"},
        {"method": "fisher", "importance": "mask_nodes", "mapping": "structural", "labels": "sampled"},
        {"method": "fisher", "importance": "diagonal", "labels": "exact"},
        {"method": "fisher", "importance": "block_traces"},
        {"method": "regmean"},
        {},
    ],
    ids=lambda s: "-".join(map(str, s.values())) or "open",
)
def test_a_merged_language_model_is_one(world: World, settings: dict[str, Any]) -> None:
    merged = world.merge(**settings)
    model = world.opened()
    assert type(model) is type(tiny_language(world.name))
    mine = merged.task("math").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(mine[name], tensor)
    scores = plait.evaluate(merged, world.data)
    assert set(scores.tasks) == {"math", "code"}
    assert set(scores.tasks["math"].sources) == {"math"}
    assert scores["math"]["perplexity"] > 1


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "actmerge", "tsv", "della"])
def test_rules_with_a_base(world: World, method: str) -> None:
    world.merge(method=method, base=world.base)
    assert world.opened()


def test_regmean_of_conv1d_is_that_of_its_transpose(tmp_path: Path) -> None:
    """A source merged with itself stays itself, and each weight fits the sources' outputs on their inputs."""
    world = World("gpt2", tmp_path)
    world.merge(method="regmean", ridge=0.0)
    model = world.opened()
    sources = [AutoModelForCausalLM.from_pretrained(folder) for folder in world.sources.values()]
    inputs = []
    for source, texts in zip(sources, (MATH, CODE), strict=True):
        from tests.languages import word_tokenizer

        seen: list[torch.Tensor] = []
        layer = source.transformer.h[0].mlp.c_fc
        hook = layer.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].flatten(0, -2)))
        for text in texts:
            source(**word_tokenizer(eos=False)(text, return_tensors="pt"))
        hook.remove()
        inputs.append(torch.cat(seen).detach())
    total, wanted = torch.zeros(16, 16), torch.zeros(16, 24)
    for x, source in zip(inputs, sources, strict=True):
        gram = x.T @ x / x.square().sum()
        total, wanted = total + gram, wanted + gram @ source.transformer.h[0].mlp.c_fc.weight.detach()
    torch.testing.assert_close(total @ model.transformer.h[0].mlp.c_fc.weight, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_regmean_in_forward_order(name: str, tmp_path: Path) -> None:
    world = World(name, tmp_path)
    average = world.merge(method="average").task("math").state_dict()
    average = {key: value.clone() for key, value in average.items()}
    found = world.merge(method="regmean", forward=True).task("math").state_dict()
    moved = {key for key, value in found.items() if not torch.allclose(value, average[key], atol=1e-6)}
    linear = "mlp.down_proj" if name == "llama" else "mlp.c_proj"
    assert any(linear in key for key in moved)
    assert not any("norm" in key or "ln_" in key or "embed" in key for key in moved)


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_merge_expert_by_expert(name: str, tmp_path: Path) -> None:
    world = World(name, tmp_path)
    sources = [AutoModelForCausalLM.from_pretrained(folder) for folder in world.sources.values()]
    world.merge(method="average")
    mean = sum(source.model.layers[1].mlp.experts.gate_up_proj for source in sources) / 2
    torch.testing.assert_close(world.opened().model.layers[1].mlp.experts.gate_up_proj, mean)
    for settings in ({"importance": "diagonal"}, {"importance": "block_traces", "normalize": "none"}):
        world.merge(method="fisher", **settings)
        moved = world.opened().model.layers[1].mlp.experts.gate_up_proj
        assert not torch.allclose(moved, mean)
    world.merge(method="regmean")
    torch.testing.assert_close(world.opened().model.layers[1].mlp.experts.gate_up_proj, mean)
    world.merge(method="ties", base=world.base)
    assert world.opened()
    with pytest.raises(MergeError, match="have no mask nodes"):
        world.merge(method="fisher", importance="mask_nodes")


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = Path(save_language("mixtral", tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if "experts.1.w2" in name)
    save_file({key: value for key, value in tensors.items() if key != lost}, folder / "model.safetensors")
    with pytest.raises(SourceError, match=r"missing layers\.\d\.mlp\.experts\.down_proj"):
        plait.inspect(str(folder))


def test_two_stacks_have_no_forward_order(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="t5 has two stacks of layers"):
        World("t5", tmp_path).merge(method="regmean", forward=True)


def test_the_commands_of_the_guide(llama: World, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(llama.folder / "shown")
    given = [f"{name}={folder}" for name, folder in llama.sources.items()]
    data = [word for name, file in llama.data.items() for word in ("--data", f"{name}={file}")]
    assert invoke(["merge", *given, *data, "--method", "fisher", "--importance", "mask-nodes", "-o", out]) == 0
    assert "one language model of math, code" in capsys.readouterr().out
    assert invoke(["evaluate", out, "--data", llama.data["math"], "--json"]) == 0
    [scores] = json.loads(capsys.readouterr().out)["tasks"].values()
    assert scores["primary"] == "perplexity"
    assert set(scores["metrics"]) == {"perplexity", "bits_per_byte", "tokens", "bytes"}
    assert set(scores["sources"]) == {"math", "code"}
    assert scores["interval"]["low"] < scores["metrics"]["perplexity"] < scores["interval"]["high"]
    best = min(source["perplexity"] for source in scores["sources"].values())
    assert scores["relative"] == pytest.approx(best / scores["metrics"]["perplexity"])


def test_a_pipeline_generates_from_the_result(llama: World) -> None:
    llama.merge(method="average")
    [found] = pipeline("text-generation", model=str(llama.folder / "out"))("good film", max_new_tokens=3)
    assert found["generated_text"].startswith("good film")


def test_predictions_are_left_to_the_model(llama: World) -> None:
    merged = llama.merge(method="average")
    with pytest.raises(DataError, match=r"writes texts instead of labelling them.*AutoModelForCausalLM"):
        merged.predict(["good film"])
    ids = merged.tokenizer("good film", return_tensors="pt")["input_ids"]
    assert merged.task("math").generate(ids, max_new_tokens=2).shape[0] == 1


def test_statistics_can_be_shared_in_place_of_texts(llama: World, tmp_path: Path) -> None:
    files = {}
    for name, folder in llama.sources.items():
        files[name] = str(tmp_path / f"{name}.safetensors")
        told = ["estimate", folder, "--data", llama.data[name], "--importance", "gram", "-o", files[name]]
        assert invoke(told) == 0
    merged = plait.merge(llama.sources, statistics=files, out=tmp_path / "out")
    assert merged.method == "regmean"


def test_plain_language_models_are_scored(llama: World, tmp_path: Path) -> None:
    found = plait.evaluate(llama.sources["math"], llama.data["math"], predictions=tmp_path / "rows.csv")
    assert found.tasks["model"].primary == "perplexity"
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == len(MATH) + 1


def test_scores_of_a_merge_go_on_record(llama: World) -> None:
    merged = plait.merge(llama.sources, method="average", evaluate={"math": llama.data["math"]},
                         out=llama.folder / "scored", overwrite=True)  # fmt: skip
    assert merged.manifest.scores["tasks"]["math"]["primary"] == "perplexity"


def test_a_family_without_a_table_says_what_is_not_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = World("opt", tmp_path)
    with caplog.at_level("INFO", logger="plait"):
        world.merge(method="fisher", importance="diagonal")
        world.merge(method="regmean")
    assert "opt is no family of the table: diagonal is taken by the kind of each module" in caplog.text
    assert "gram is taken by the kind of each module" in caplog.text
    world.merge(method="ties", base=world.base)
    assert world.opened()
    with pytest.raises(MergeError, match="no topology for models of type 'opt'"):
        world.merge(method="fisher", importance="mask_nodes")


def test_targets_are_asked_for_before_anything_is_computed(tmp_path: Path) -> None:
    world = World("t5", tmp_path)
    world.data["code"] = write_texts(tmp_path / "bare.jsonl", CODE)
    with pytest.raises(DataError, match=r"bare\.jsonl: has no targets"):
        world.merge(method="regmean")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "no data given"),
        ({"data": None, "tasks": "hellaswag,piqa"}, "tasks hellaswag, piqa come from lm-evaluation-harness"),
    ],
)
def test_what_cannot_be_evaluated_is_said(llama: World, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plait.evaluate(llama.sources["math"], **options)


def test_options_of_language_models_are_refused_elsewhere(sources: dict[str, str], data: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="--stride is for language models"):
        plait.evaluate(sources["mood"], data["mood"], stride=3)
