"""Adapter folders as checkpoints: folded tensors equal `merge_and_unload()`; what cannot be folded is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from plait.checkpoints.checkpoint import open_checkpoint
from plait.errors import SourceError
from tests.models import save, tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT talks about its own settings
TARGETS = ["query", "value", "attention.output.dense"]


def moved(model: Any, seed: int = 0) -> Any:
    """Returns a PEFT model whose trained tensors are drawn anew: fresh ones change nothing."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                size = 0.3 if "magnitude" not in name and "ia3" not in name else 0.05
                parameter.add_(size * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def base_at(folder: Path, family: str = "bert", head: str = "sequence", **options: Any) -> Path:
    return save(tiny(family, head, drift=0.0, **options), folder / "base")


def adapted(folder: Path, config: Any, *, head: str = "sequence", seed: int = 0) -> tuple[Path, dict]:
    """Returns an adapter's folder, and the parameters of the model that PEFT makes of it."""
    base = base_at(folder, head=head) if not (folder / "base").is_dir() else folder / "base"
    model = type(tiny("bert", head)).from_pretrained(base)
    trained = moved(peft.get_peft_model(model, config), seed)
    place = folder / f"adapter-{seed}"
    trained.save_pretrained(place)
    return place, dict(trained.merge_and_unload().named_parameters())


def folded(place: Path, **options: Any) -> dict[str, torch.Tensor]:
    found = open_checkpoint(place, **options)
    body = {f"{found.prefix}.{name}" if found.kind != "body" else name: s for name, s in found.body.items()}
    return {name: found.read(stored) for name, stored in {**body, **found.head}.items()}


KINDS = {
    "plain": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {"r": 4, "rank_pattern": {"query": 2}, "alpha_pattern": {r"layer.1.attention.self.value": 12}},
    "all biases": {"r": 3, "bias": "all"},
    "biases of its layers": {"r": 3, "bias": "lora_only"},
    "bias of B": {"r": 3, "lora_bias": True},
    "dora": {"r": 4, "use_dora": True},
    "embeddings": {"r": 3, "target_modules": ["query", "word_embeddings"]},
    "embeddings with magnitudes": {"r": 3, "use_dora": True, "target_modules": ["query", "word_embeddings"]},
    "embeddings saved whole": {"r": 3, "modules_to_save": ["word_embeddings", "classifier"]},
    "tokens": {"r": 3, "trainable_token_indices": {"word_embeddings": [5, 9]}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_adapter_is_what_peft_makes_of_it(kind: str, tmp_path: Path) -> None:
    settings = {"target_modules": TARGETS, **KINDS[kind]}
    place, expected = adapted(tmp_path, peft.LoraConfig(task_type="SEQ_CLS", **settings))
    found = folded(place)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    changed = [n for n, t in found.items() if not torch.equal(t, load_file(tmp_path / "base/model.safetensors")[n])]
    assert len(changed) > 4


@pytest.mark.parametrize("forward", [["output.dense"], []])
def test_factors_of_ia3(forward: list[str], tmp_path: Path) -> None:
    config = peft.IA3Config(task_type="SEQ_CLS", target_modules=["key", "output.dense"], feedforward_modules=forward)
    place, expected = adapted(tmp_path, config)
    for name, tensor in folded(place).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("dora", [False, True])
def test_weights_that_lie_the_other_way_round(dora: bool, tmp_path: Path) -> None:
    config = AutoConfig.for_model("gpt2", n_embd=16, n_head=2, n_layer=1, vocab_size=40, n_positions=32)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["c_attn", "c_proj"], use_dora=dora)
    trained = moved(peft.get_peft_model(model, lora))
    trained.save_pretrained(tmp_path / "lora")
    expected = dict(trained.merge_and_unload().named_parameters())
    for name, tensor in folded(tmp_path / "lora").items():
        torch.testing.assert_close(tensor, expected[f"transformer.{name}"], rtol=1e-5, atol=1e-6, msg=name)


def test_a_head_on_a_bare_base_comes_from_the_adapter(tmp_path: Path) -> None:
    base = base_at(tmp_path, head="body")
    model = type(tiny("bert")).from_pretrained(base, num_labels=5)
    trained = moved(peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=TARGETS)))
    trained.save_pretrained(tmp_path / "lora")
    found = open_checkpoint(tmp_path / "lora")
    assert (found.kind, found.labels) == ("sequence_classification", tuple(f"LABEL_{i}" for i in range(5)))
    assert found.recorded_base == str(base)
    expected = dict(trained.merge_and_unload().named_parameters())
    torch.testing.assert_close(found.model().classifier.weight, expected["classifier.weight"])
    named = open_checkpoint(tmp_path / "lora", labels=["a", "b", "c", "d", "e"])
    assert named.labels == ("a", "b", "c", "d", "e")


def test_the_model_answers_as_peft_does_and_reads_with_the_tokenizer_of_its_base(tmp_path: Path) -> None:
    place, expected = adapted(tmp_path, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=TARGETS))
    found = open_checkpoint(place)
    model, tokens = found.model(), found.tokenizer()(["the film is good"], return_tensors="pt")
    torch.testing.assert_close(dict(model.named_parameters()), expected, rtol=1e-5, atol=1e-6)
    assert model(**tokens).logits.shape == (1, 3)
    assert found.tokenizer_folder == tmp_path / "base"


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    place, _ = adapted(tmp_path, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=TARGETS))
    exact = folded(place)
    weights = load_file(tmp_path / "base/model.safetensors")
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(half, tmp_path / "base/model.safetensors", {"format": "pt"})
    name = "bert.encoder.layer.0.attention.self.query.weight"
    change = exact[name] - weights[name]
    assert torch.equal(folded(place)[name], (weights[name].bfloat16().float() + change).bfloat16())


def test_digests_tell_adapters_apart_and_depend_on_the_base(tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=TARGETS)
    first, second = (adapted(tmp_path, config, seed=seed)[0] for seed in (0, 1))
    digest = open_checkpoint(first).digest
    assert digest == open_checkpoint(first).digest != open_checkpoint(second).digest
    save(tiny("bert", drift=0.0, base_seed=7), tmp_path / "base")
    assert open_checkpoint(first).digest != digest


def settings_of(place: Path, **changes: Any) -> None:
    file = place / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    return adapted(folder, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=TARGETS))[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "adds inputs and changes no weights"),
        ({"peft_type": "LOHA"}, r"adapters of type LOHA are not read; .*merge_and_unload"),
        ({"init_lora_weights": "pissa"}, "changes the base itself: save the adapter with path_initial_model"),
        ({"layer_replication": [[0, 2]]}, "layer_replication in adapter_config.json: such an adapter is not read"),
        ({"base_model_name_or_path": "gone/away"}, "an adapter of gone/away, which is not here: give it with --base"),
        ({"base_model_name_or_path": None}, "records no base: give its base with --base"),
    ],
)
def test_what_cannot_be_folded_is_refused(changes: dict, said: str, lora: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(lora, tmp_path / "x"))
    settings_of(place, **changes)
    with pytest.raises(SourceError, match=said):
        open_checkpoint(place)


def test_an_adapter_of_another_base_is_refused_and_a_renamed_one_is_found(lora: Path, tmp_path: Path, caplog) -> None:
    place = Path(shutil.copytree(lora, tmp_path / "x"))
    settings_of(place, base_model_name_or_path="somewhere/else")
    other = save(tiny("bert", hidden_size=8, num_attention_heads=2), tmp_path / "small")
    with pytest.raises(SourceError, match=r"x: not an adapter of this base \(bert.*query is \[8, 8\] in the base, the"):
        open_checkpoint(place, base=other)
    with pytest.raises(SourceError, match=r"not an adapter of this base \(the base has no bert"):
        open_checkpoint(place, base=save(tiny("bert", num_hidden_layers=1), tmp_path / "short"))
    found = open_checkpoint(place, base=lora.parent / "base")
    assert found.recorded_base == str(lora.parent / "base")
    assert "records the base somewhere/else, which is not here: folding it into" in caplog.text


def test_an_adapter_of_the_bare_encoder_fits_its_base_with_a_head(tmp_path: Path) -> None:
    base = base_at(tmp_path, head="body")
    place, expected = adapted(tmp_path, peft.LoraConfig(r=2, target_modules=TARGETS), head="body")
    headed = save(tiny("bert", drift=0.0), tmp_path / "headed")
    settings_of(place, auto_mapping=None, base_model_name_or_path=str(headed))
    found = open_checkpoint(place)
    assert (found.kind, base.is_dir()) == ("sequence_classification", True)
    for name, stored in found.body.items():
        torch.testing.assert_close(found.read(stored), expected[name], rtol=1e-5, atol=1e-6)


def test_a_head_that_was_not_saved_is_named(lora: Path, tmp_path: Path) -> None:
    place, base = Path(shutil.copytree(lora, tmp_path / "x")), base_at(tmp_path, head="body")
    tensors = {n: t for n, t in load_file(place / "adapter_model.safetensors").items() if "classifier" not in n}
    save_file(tensors, place / "adapter_model.safetensors")
    settings_of(place, base_model_name_or_path=str(base))
    with pytest.raises(SourceError, match=r"has classifier.bias; classifier.weight: train with modules_to_save"):
        open_checkpoint(place)


def test_damage_is_named(lora: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(lora, tmp_path / "x"))
    (place / "adapter_model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"adapter_config.json without weights; expected adapter_model.safetensors"):
        open_checkpoint(place)
    (place / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"adapters of type None are not read; expected IA3; LORA; TRAINABLE_TOKENS"):
        open_checkpoint(place)
