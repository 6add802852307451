"""Ensembles on disk: made from checkpoints, saved and found again, folded into ordinary ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipeline,
)

from plait.checkpoints.checkpoint import open_checkpoint
from plait.data import length_limit
from plait.ensembles.build import from_checkpoints, new_ensemble
from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.folding import PROJECTIONS, fold, one_member
from plait.ensembles.modeling import EnsembleForSequenceClassification, EnsembleForTokenClassification
from plait.errors import MergeError, RecipeError
from tests.models import FAMILIES, save, tiny, tiny_config, tiny_tokenizer
from tests.reference import ensembles_model as reference
from tests.unit.ensembles.test_modeling import EXACT, TASKS, batch, depths, ensemble

AUTO = {"sequence": AutoModelForSequenceClassification, "token": AutoModelForTokenClassification}
CLASSES = {"sequence": EnsembleForSequenceClassification, "token": EnsembleForTokenClassification}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("head", ["linear", "tanh"])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_bit_by_bit(family: str, head: str, kind: str, tmp_path: Path) -> None:
    for shared in depths(family):
        model = ensemble(family, kind, shared_layers=shared, head=head).float()
        model.save_pretrained(tmp_path)
        files = sorted(file.name for file in tmp_path.iterdir())
        assert files == ["config.json", "model.safetensors"]
        found = AUTO[kind].from_pretrained(tmp_path)
        assert type(found) is CLASSES[kind]
        before, after = model.state_dict(), found.state_dict()
        assert list(before) == list(after)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert load_file(tmp_path / "model.safetensors").keys() == before.keys()
        buffers = dict(found.named_buffers())
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
        assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in found.parameters()]
        assert torch.equal(model(**batch()).logits, found(**batch()).logits)


def test_the_configuration_says_it_all(tmp_path: Path) -> None:
    ensemble("roberta", shared_layers=1, head="tanh", classifier_dropout=0.3).save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["architectures"] == ["EnsembleForSequenceClassification"]
    assert told["model_type"] == "plait_ensemble"
    assert told["encoder"]["model_type"] == "roberta"
    assert "id2label" not in told["encoder"] or len(told["encoder"]["id2label"]) == 2
    found = AutoConfig.from_pretrained(tmp_path)
    assert (found.members, found.shared_layers, found.head) == (3, 1, "tanh")
    assert (found.id2label[2], found.label2id["label 2"]) == ("label 2", 2)
    assert (found.hidden_size, found.num_hidden_layers, found.dropout) == (16, 2, 0.3)
    assert found.max_position_embeddings == 66
    assert found.vocab_size == tiny_config("roberta").vocab_size
    assert found.num_attention_heads == 4
    assert found.type_vocab_size == tiny_config("roberta").type_vocab_size


def test_an_ensemble_takes_as_many_tokens_as_its_encoder() -> None:
    for family in FAMILIES:
        encoder = tiny_config(family)
        tokenizer = tiny_tokenizer(family, model_max_length=10**30)
        config = EnsembleConfig(encoder, members=2)
        assert length_limit(tokenizer, config) == length_limit(tokenizer, encoder)


def test_attention_is_chosen_as_for_any_model(tmp_path: Path) -> None:
    ensemble(shared_layers=1).save_pretrained(tmp_path)
    for chosen in ("eager", "sdpa"):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation=chosen)
        assert model.encoder.config._attn_implementation == chosen
    assert (
        AutoModelForSequenceClassification.from_pretrained(tmp_path).encoder.config._attn_implementation
        == "sdpa"
    )


def test_precision_is_the_ensembles(tmp_path: Path) -> None:
    encoder = tiny_config("bert")
    encoder.dtype = torch.float16
    model = CLASSES["sequence"](EnsembleConfig(encoder, members=2))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model.half().save_pretrained(tmp_path)
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        found = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in found.parameters()} == {dtype}


def test_an_ensemble_opens_as_a_checkpoint(tmp_path: Path) -> None:
    model = ensemble("distilbert", shared_layers=1).float()
    model.save_pretrained(tmp_path)
    source = open_checkpoint(tmp_path)
    assert (source.kind, source.labels) == ("sequence_classification", ("label 0", "label 1", "label 2"))
    assert source.label_parameters == {"heads.out.weight", "heads.out.bias"}
    assert torch.equal(source.model()(**batch()).logits, model(**batch()).logits)


def test_import_plait_is_all_it_takes(tmp_path: Path) -> None:
    model = ensemble(dropout=0.0).float()
    model.save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    code = f"""
import sys, plait
assert not {{"torch", "transformers"}} & set(sys.modules)
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification, pipeline
from transformers.models.auto import modeling_auto
assert modeling_auto.__spec__.loader.__class__.__module__ != "plait.autoclasses"
assert AutoConfig.from_pretrained({str(tmp_path)!r}).members == 3
model = AutoModelForSequenceClassification.from_pretrained({str(tmp_path)!r})
answer = pipeline("text-classification", model={str(tmp_path)!r})("the film was good")
print(type(model).__name__, answer[0]["label"])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("EnsembleForSequenceClassification label ")


@pytest.mark.parametrize("first", ["plait.ensembles.configuration", "transformers.pipelines"])
def test_whatever_is_imported_first(first: str) -> None:
    code = f"""
import {first}, plait
from transformers import AutoModelForTokenClassification
from plait.ensembles.configuration import EnsembleConfig
print(AutoModelForTokenClassification._model_mapping[EnsembleConfig].__name__)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "EnsembleForTokenClassification", found.stderr


def test_pipelines_use_the_mean(tmp_path: Path) -> None:
    for kind, task in (("sequence", "text-classification"), ("token", "token-classification")):
        folder = tmp_path / kind
        model = ensemble(kind=kind, shared_layers=1).float()
        model.save_pretrained(folder)
        tokenizer = tiny_tokenizer("bert")
        tokenizer.save_pretrained(folder)
        found = pipeline(task, model=str(folder))("the film was good")
        logits = model(**tokenizer("the film was good", return_tensors="pt")).logits.flatten(0, -2)
        rows = logits.argmax(-1) if kind == "sequence" else logits.argmax(-1)[1:-1]
        name = "label" if kind == "sequence" else "entity"
        assert [answer[name] for answer in found] == [f"label {int(row)}" for row in rows]


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_linear_heads_fold_exactly(family: str, kind: str, tmp_path: Path) -> None:
    model = ensemble(family, kind, members=5)
    plain = fold(model)
    assert type(plain).__name__ in {
        c.__name__ for c in AUTO[kind]._model_mapping.values() if isinstance(c, type)
    }
    mean = model(**batch()).logits
    torch.testing.assert_close(plain(**batch()).logits, mean, **EXACT)
    plain.save_pretrained(tmp_path)
    loaded = AUTO[kind].from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(loaded(**batch()).logits, mean, **EXACT)
    assert loaded.config.id2label == model.config.id2label
    assert open_checkpoint(tmp_path).labels == ("label 0", "label 1", "label 2")


def test_the_folded_head_is_the_mean() -> None:
    model = ensemble()
    weight, bias = reference.mean_head(model.heads.out.weight, model.heads.out.bias)
    plain = fold(model)
    torch.testing.assert_close(plain.classifier.weight, weight, **EXACT)
    torch.testing.assert_close(plain.classifier.bias, bias, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_member_with_a_tanh_head_needs_a_class_that_has_one(family: str) -> None:
    for shared in depths(family):
        model = ensemble(family, shared_layers=shared, head="tanh")
        if family not in PROJECTIONS:
            with pytest.raises(
                RecipeError, match=f"classifiers of type {family} of transformers have no projection"
            ):
                one_member(model, 1)
            continue
        expected = model(**batch(), output_members=True).member_logits
        for member in range(3):
            alone = one_member(model, member)(**batch()).logits
            torch.testing.assert_close(alone, expected[member], **EXACT)


def test_what_does_not_fold_says_why() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"head": "tanh"}, r"its heads are not linear \(tanh\); export one member \(--member 0 to 2\)"),
        ({"shared_layers": 1}, "each member has 1 layers of its own"),
    )
    for settings, message in cases:
        with pytest.raises(RecipeError, match=message):
            fold(ensemble(**settings))
    with pytest.raises(RecipeError, match="member is 3; the ensemble has 3: expected 0 to 2"):
        one_member(ensemble(), 3)
    with pytest.raises(RecipeError, match="token classifiers of transformers have no projection"):
        one_member(ensemble(kind="token", head="tanh"), 0)


def test_one_member_folds_whatever_it_is() -> None:
    model = ensemble(members=1, shared_layers=0, head="tanh")
    torch.testing.assert_close(fold(model)(**batch()).logits, model(**batch()).logits, **EXACT)


def test_an_export_keeps_the_dropout_it_was_given() -> None:
    names = {
        "bert": "classifier_dropout",
        "distilbert": "seq_classif_dropout",
        "albert": "classifier_dropout_prob",
    }
    for family, name in names.items():
        model = ensemble(family, classifier_dropout=0.37)
        rates = [m.p for n, m in model.encoder.named_modules() if n == "dropout"]
        assert rates == [0.37]
        assert getattr(fold(model).config, name) == 0.37


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Checkpoints by family, head, seed and options, saved once."""
    folder = tmp_path_factory.mktemp("fine tuned")

    def made(family: str = "bert", head: str = "sequence", seed: int = 0, **options: Any) -> Any:
        name = "-".join([family, head, str(seed), *(f"{k}{v}" for k, v in options.items())]).replace("/", "_")
        if not (folder / name).exists():
            save(tiny(family, head, seed=seed, **options), folder / name, tokenizer=False)
        return open_checkpoint(folder / name)

    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["sequence", "regression", "multi_label", "token"])
def test_members_from_checkpoints_of_one_body_are_those_checkpoints(
    family: str, head: str, fine_tuned: Any
) -> None:
    """With equal encoders nothing is lost by sharing: each member says what its checkpoint says."""
    sources = [fine_tuned(family, head, seed, drift=0.0) for seed in (1, 2, 3)]
    for shared in depths(family):
        model = from_checkpoints(sources, shared_layers=shared).double()
        found = model(**batch(), output_members=True).member_logits
        for member, source in enumerate(sources):
            if shared == model.layers.depth and set(source.head) - set(source.label_parameters):
                continue  # all share the layer before the last one, of which each source has its own
            alone = source.model(dtype=torch.float64)(**batch()).logits
            torch.testing.assert_close(found[member], alone, rtol=0, atol=1e-6)
        assert model.config.problem_type == sources[0].problem_type


@pytest.mark.parametrize("family", sorted(PROJECTIONS))
def test_tanh_heads_from_checkpoints(family: str, fine_tuned: Any) -> None:
    sources = [fine_tuned(family, "sequence", seed, drift=0.0) for seed in (1, 2)]
    for shared in depths(family):
        model = from_checkpoints(sources, shared_layers=shared, head="tanh").double()
        found = model(**batch(), output_members=True).member_logits
        for member, source in enumerate(sources):
            alone = source.model(dtype=torch.float64)(**batch()).logits
            torch.testing.assert_close(found[member], alone, rtol=0, atol=1e-6)


def test_no_tanh_head_from_a_head_of_another_form(fine_tuned: Any) -> None:
    with pytest.raises(
        RecipeError, match="classifiers of type electra of transformers have no projection with tanh"
    ):
        from_checkpoints([fine_tuned("electra")], head="tanh")


def test_tops_are_kept_and_the_bottom_is_what_is_given(fine_tuned: Any) -> None:
    sources = [fine_tuned(seed=seed) for seed in (1, 2)]
    states = [source.model().state_dict() for source in sources]
    merged = {name: torch.full(source_shape(sources[0], name), 0.5) for name in sources[0].body}
    ways = (merged, merged.get, None)
    for shared in ways:
        model = from_checkpoints(sources, shared_layers=1, shared=shared)
        for member in range(2):
            for name, tensor in one_member(model, member).state_dict().items():
                if ".layer.0." in name or "embeddings" in name:
                    average = (states[0][name] + states[1][name]) / 2
                    expected = average if shared is None else merged[name.removeprefix("bert.")]
                    torch.testing.assert_close(tensor, expected)
                else:
                    assert torch.equal(tensor, states[member][name]), name


def source_shape(source: Any, name: str) -> tuple[int, ...]:
    shape: tuple[int, ...] = source.header(source.body[name]).shape
    return shape


def test_labels_are_matched_by_name(fine_tuned: Any, tmp_path: Path) -> None:
    first = fine_tuned(seed=1, drift=0.0)
    model = tiny("bert", seed=2, drift=0.0)
    names = ["sequence-2", "sequence-0", "sequence-1"]
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    other = open_checkpoint(save(model, tmp_path / "other", tokenizer=False))
    for head in ("linear", "tanh"):
        found = from_checkpoints([first, other], shared_layers=1, head=head)
        assert found.config.id2label == {0: "sequence-0", 1: "sequence-1", 2: "sequence-2"}
        logits = found(**batch(), output_members=True).member_logits[1]
        torch.testing.assert_close(logits, model(**batch()).logits[:, [1, 2, 0]])


def test_what_cannot_be_one_ensemble_is_said_at_once(fine_tuned: Any) -> None:
    base = fine_tuned(seed=1)
    cases = (
        (fine_tuned("roberta"), r"architecture differs \(.*: BertFor.*, .*: RobertaFor"),
        (
            fine_tuned(labels=2),
            r"labels differ \(.*: sequence-0, sequence-1, sequence-2; .*: sequence-0, sequence-1\)",
        ),
        (fine_tuned(head="multi_label"), "problem_type differs"),
        (fine_tuned(head="body"), r"has no head of a task \(kind body\)"),
        (fine_tuned(intermediate_size=20), "intermediate_size differs"),
    )
    for other, message in cases:
        with pytest.raises(MergeError, match=message) as caught:
            from_checkpoints([base, other])
        assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="members is 0"):
        from_checkpoints([])
    with pytest.raises(
        RecipeError, match="shared_layers is 3; the encoder has 2 layers: expected all, or 0 to 2"
    ):
        from_checkpoints([base], shared_layers=3)


@pytest.mark.parametrize("head", ["linear", "tanh"])
@pytest.mark.parametrize("family", FAMILIES)
def test_new_members_start_as_the_base(family: str, head: str, fine_tuned: Any) -> None:
    base = fine_tuned(family, "body")
    weights = base.model().state_dict()
    before = torch.random.get_rng_state()
    for shared in depths(family):
        options = {"members": 2, "labels": ["no", "yes"], "shared_layers": shared, "head": head}
        model = new_ensemble(base, **options, seed=7)
        assert isinstance(model, EnsembleForSequenceClassification)
        again = new_ensemble(base, **options, seed=7).state_dict()
        assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
        other = new_ensemble(base, **options, seed=8)
        assert not torch.equal(other.heads.out.weight, model.heads.out.weight)
        assert not torch.equal(model.heads.out.weight[0], model.heads.out.weight[1])
        for found in model.encoder.state_dict().values():
            assert torch.isfinite(found).all()
        for m in range(2):
            states = features(model, m)
            torch.testing.assert_close(states, base.model()(**batch()).last_hidden_state)
        assert weights.keys() >= {"embeddings.word_embeddings.weight"} or family == "modernbert"
    assert torch.equal(torch.random.get_rng_state(), before)


def features(model: Any, member: int) -> torch.Tensor:
    """The last hidden states of one member."""
    with model._active([member]):
        found: torch.Tensor = model.encoder.base_model(**batch()).last_hidden_state
    return found


@pytest.mark.parametrize("head", ["linear", "tanh"])
def test_the_mean_of_new_heads_is_as_large_as_one_head(fine_tuned: Any, head: Any) -> None:
    labels = [f"label {i}" for i in range(40)]
    one, mean = (
        new_ensemble(fine_tuned(), members=members, labels=labels, head=head).heads.out.weight.mean(0).std()
        for members in (1, 16)
    )
    torch.testing.assert_close(mean, one, rtol=0.15, atol=0.0)


def test_kinds_of_new_ensembles(fine_tuned: Any) -> None:
    base = fine_tuned("bert", "body")
    tags = new_ensemble(base, members=2, labels=["A", "B"], kind="token_classification")
    assert isinstance(tags, EnsembleForTokenClassification)
    number = new_ensemble(base, members=2, labels=None)
    assert (number.config.problem_type, number.num_labels) == ("regression", 1)
    several = new_ensemble(base, members=2, labels=["a", "b"], problem_type="multi_label_classification")
    assert several.config.problem_type == "multi_label_classification"
    fine = new_ensemble(fine_tuned(), members=2, labels=["a", "b", "c", "d"])
    assert fine.heads.out.weight.shape == (2, 4, 16)
    with pytest.raises(RecipeError, match="cannot be of kind 'question_answering'"):
        new_ensemble(base, members=2, labels=["a"], kind="question_answering")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 0}, "members is 0; expected 1 or more"),
        ({"members": 1.5}, "members is 1.5; expected 1 or more"),
        ({"members": True}, "members is True"),
        ({"shared_layers": 3}, "shared_layers is 3; the encoder has 2 layers: expected all, or 0 to 2"),
        ({"shared_layers": -1}, "shared_layers is -1"),
        ({"head": "tan"}, "unknown head 'tan' \\(did you mean 'tanh'"),
        ({"classifier_dropout": 1.0}, "classifier_dropout is 1.0; expected 0 or more and below 1"),
        ({"encoder": {"model_type": "brt"}}, "encoder is of type 'brt' \\(did you mean 'bert'"),
        ({"members": 0, "head": "x"}, "members is 0; expected 1 or more; unknown head"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        EnsembleConfig(**{"encoder": tiny_config("bert"), **settings})
