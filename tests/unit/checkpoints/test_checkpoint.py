"""Opening: every family and head, every file format, body and head told apart, nothing read before it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, PreTrainedModel

from plait.checkpoints import headers as files
from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint
from plait.encoders.heads import describe_head
from tests.models import FAMILIES, HEADS, save, texts, tiny

KINDS = {
    "sequence": "sequence_classification",
    "regression": "sequence_classification",
    "multi_label": "sequence_classification",
    "token": "token_classification",
    "qa": "question_answering",
    "body": "body",
}
PROBLEMS = {
    "sequence": "single_label_classification",
    "regression": "regression",
    "multi_label": "multi_label_classification",
}


def as_pickle(model: PreTrainedModel, folder: Path, modern: bool = True) -> Path:
    """Returns the folder after its weights became a pickle of today's or of the old format."""
    save(model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=modern)
    return folder


def rewrite(folder: Path, change: dict[str, str | None], **tensors: torch.Tensor) -> Path:
    """Returns the folder after renaming (None: dropping) stored tensors and adding some."""
    file = folder / "model.safetensors"
    found = {change.get(name, name): tensor for name, tensor in load_file(file).items()}
    save_file({k: v for k, v in {**found, **tensors}.items() if k is not None}, file, {"format": "pt"})
    return folder


def configure(folder: Path, **changes: object) -> Path:
    """Returns the folder after changing (None: dropping) entries of its config.json."""
    file = folder / "config.json"
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


def assert_same(checkpoint: Checkpoint, model: PreTrainedModel) -> None:
    """Asserts that body and head together are the model's parameters, each in its place."""
    weights = dict(model.named_parameters())
    prefix = "" if checkpoint.kind == "body" else f"{checkpoint.prefix}."
    found = {f"{prefix}{name}": stored for name, stored in checkpoint.body.items()} | dict(checkpoint.head)
    assert found.keys() == weights.keys()
    for name, stored in found.items():
        assert torch.equal(checkpoint.read(stored), weights[name]), name
        header = checkpoint.header(stored)
        assert (header.dtype, header.shape) == (weights[name].dtype, tuple(weights[name].shape))
        assert not header.addressable or header.end - header.start == header.nbytes


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_head_is_split_into_body_and_head(family, head, tmp_path):
    model = tiny(family, head)
    checkpoint = open_checkpoint(save(model, tmp_path / "source"))
    assert_same(checkpoint, model)
    assert (checkpoint.name, checkpoint.kind) == ("source", KINDS[head])
    assert checkpoint.problem_type == PROBLEMS.get(head)
    assert checkpoint.labels == (
        tuple(f"{head}-{i}" for i in range(3)) if head in {"sequence", "multi_label", "token"} else None
    )
    assert bool(checkpoint.head) == (head != "body")
    assert not any(name.startswith(f"{checkpoint.prefix}.") for name in checkpoint.body)
    assert describe_head(type(model), model.config) == {
        "kind": checkpoint.kind, "labels": checkpoint.labels, "problem_type": checkpoint.problem_type,
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_and_pickles_read_like_one_file(family, tmp_path):
    model = tiny(family)
    folders = [
        save(model, tmp_path / "whole"),
        save(model, tmp_path / "shards", max_shard_size="4KB"),
        as_pickle(model, tmp_path / "pickle"),
        as_pickle(model, tmp_path / "old", modern=False),
    ]
    assert len(list(folders[1].glob("*.safetensors"))) > 1
    opened = [open_checkpoint(folder) for folder in folders]
    for checkpoint in opened:
        assert_same(checkpoint, model)
    assert len({checkpoint.digest for checkpoint in opened}) == 1
    assert all(header.addressable for checkpoint in opened[:3] for header in checkpoint.headers.values())


def test_sharded_pickles_are_read(tmp_path):
    model = tiny("bert")
    folder = save(model, tmp_path)
    weights = dict(model.state_dict())
    (folder / "model.safetensors").unlink()
    shards = {f"pytorch_model-{i}.bin": dict(list(weights.items())[i::2]) for i in range(2)}
    for name, part in shards.items():
        torch.save(part, folder / name)
    index = {"weight_map": {key: name for name, part in shards.items() for key in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same(open_checkpoint(folder), model)


def test_bytes_lie_where_the_headers_say(tmp_path):
    for folder in (save(tiny("bert"), tmp_path / "a"), as_pickle(tiny("bert"), tmp_path / "b")):
        checkpoint = open_checkpoint(folder)
        for stored, header in checkpoint.headers.items():
            raw = header.file.read_bytes()[header.start : header.end]
            assert raw == checkpoint.read(stored).numpy().tobytes()


def test_opening_reads_no_weights(tmp_path, monkeypatch):
    folder = save(tiny("bert"), tmp_path, max_shard_size="4KB")
    monkeypatch.setattr(files.TensorFiles, "read", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr(files, "load_pickle", lambda *_: pytest.fail("weights were read"))
    open_checkpoint(folder)


def test_changing_what_was_read_does_not_change_the_file(tmp_path):
    folder = save(tiny("bert"), tmp_path)
    before = (folder / "model.safetensors").read_bytes()
    checkpoint = open_checkpoint(folder)
    checkpoint.read(next(iter(checkpoint.body.values()))).zero_()
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_dtypes_are_kept(dtype, tmp_path):
    model = tiny("bert").to(dtype)
    assert_same(open_checkpoint(save(model, tmp_path)), model)


def test_tensors_at_odd_offsets_are_read(tmp_path):
    weights = {"a": torch.tensor([1], dtype=torch.uint8), "b": torch.arange(3.0)}
    header = json.dumps({
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [3], "data_offsets": [1, 13]},
        "c": {"dtype": "F32", "shape": [0, 2], "data_offsets": [13, 13]},
    }).encode()  # fmt: skip
    file = tmp_path / "odd.safetensors"
    file.write_bytes(
        len(header).to_bytes(8, "little") + header + b"".join(t.numpy().tobytes() for t in weights.values())
    )
    found, reader = files.read_safetensors_header(file), files.TensorFiles()
    for name, tensor in weights.items():
        assert torch.equal(reader.read(name, found[name]), tensor)
    assert reader.read("c", found["c"]).shape == (0, 2)


def test_old_names_and_buffers_are_understood(tmp_path):
    model = tiny("bert")
    folder = save(model, tmp_path)
    old = {
        name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for name in model.state_dict()
    }
    buffers = {"bert.embeddings.position_ids": torch.arange(66)[None]}
    checkpoint = open_checkpoint(rewrite(folder, old, **buffers))
    assert_same(checkpoint, model)
    assert any(stored.endswith("gamma") for stored in checkpoint.body.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_counts_as_its_body(family, tmp_path):
    body = tiny(family, "body")
    language = AutoModelForMaskedLM.from_config(body.config)
    getattr(language, language.base_model_prefix).load_state_dict(body.state_dict(), strict=False)
    checkpoint = open_checkpoint(save(language, tmp_path))
    assert (checkpoint.kind, checkpoint.language_class, checkpoint.left_out) == ("body", type(language), ())
    tied = set(language.all_tied_weights_keys)
    own = {n for n, _ in language.named_parameters() if not n.startswith(f"{language.base_model_prefix}.")}
    assert set(checkpoint.head) == own - tied
    weights = dict(body.named_parameters())
    assert {name for name in weights if not name.startswith("pooler")} <= set(checkpoint.body)
    assert all(
        torch.equal(checkpoint.read(stored), weights[name]) for name, stored in checkpoint.body.items()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_language_heads_need_no_record(family, tmp_path):
    language = AutoModelForMaskedLM.from_config(tiny(family, "body").config)
    folder = configure(save(language, tmp_path), architectures=None)
    assert open_checkpoint(folder).kind == "body"


def test_body_names_without_prefix_under_a_class_with_head(tmp_path):
    model = tiny("bert", "token")
    names = {name: name.removeprefix("bert.") for name in model.state_dict()}
    assert_same(open_checkpoint(rewrite(save(model, tmp_path), names)), model)


def test_a_pooler_that_the_task_does_not_use_is_left_out(tmp_path):
    model = tiny("bert", "token")
    extra = {"bert.pooler.dense.weight": torch.ones(16, 16), "bert.pooler.dense.bias": torch.ones(16)}
    assert_same(open_checkpoint(rewrite(save(model, tmp_path), {}, **extra)), model)


def test_a_body_may_lack_its_pooler(tmp_path):
    folder = rewrite(
        save(tiny("bert", "body"), tmp_path), {"pooler.dense.weight": None, "pooler.dense.bias": None}
    )
    checkpoint = open_checkpoint(folder)
    assert not any("pooler" in name for name in checkpoint.body)
    assert "embeddings.word_embeddings.weight" in checkpoint.body


def test_without_a_recorded_class_only_the_body_is_certain(tmp_path):
    checkpoint = open_checkpoint(configure(save(tiny("bert", "body"), tmp_path), architectures=None))
    assert (checkpoint.architecture, checkpoint.kind, dict(checkpoint.head)) == ("BertModel", "body", {})


@pytest.mark.parametrize("family", FAMILIES)
def test_model_and_tokenizer_come_as_saved(family, tmp_path):
    model = tiny(family)
    checkpoint = open_checkpoint(as_pickle(model, tmp_path))
    batch = checkpoint.tokenizer()(texts(3), padding=True, return_tensors="pt")
    loaded = checkpoint.model()
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_label_parameters_are_found_even_in_square_heads(family, tmp_path):
    checkpoint = open_checkpoint(save(tiny(family, labels=16), tmp_path))
    last = {"classifier.out_proj.weight", "classifier.out_proj.bias"} & set(checkpoint.head)
    assert checkpoint.label_parameters == (last or {"classifier.weight", "classifier.bias"})


def test_heads_without_labels_have_no_label_parameters(tmp_path):
    assert open_checkpoint(save(tiny("bert", "qa"), tmp_path)).label_parameters == frozenset()


def test_one_output_is_a_regression_unless_recorded_otherwise(tmp_path):
    folder = configure(save(tiny("bert", "regression"), tmp_path), problem_type=None)
    assert open_checkpoint(folder).problem_type == "regression"
    configure(folder, problem_type="multi_label_classification")
    assert open_checkpoint(folder).labels == ("LABEL_0",)


def test_the_digest_follows_weights_and_nothing_else(tmp_path):
    one, same, other = (save(tiny("bert", seed=seed), tmp_path / str(i)) for i, seed in enumerate((0, 0, 1)))
    (same / "README.md").write_text("hello")
    digests = [open_checkpoint(folder).digest for folder in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 32


def test_noted_hashes_are_used(tmp_path):
    folder = save(tiny("bert"), tmp_path)
    whole, streamed = open_checkpoint(folder), open_checkpoint(folder)
    for stored in (*whole.body.values(), *whole.head.values()):
        streamed.note_hash(stored, whole._hash(stored))
    object.__setattr__(streamed, "_files", None)
    assert streamed.digest == whole.digest


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("plait.json", json.dumps({"base": "org/base"})),
        ("plait.json", json.dumps({"base": {"origin": "org/base"}})),
        ("README.md", "---\nbase_model: org/base\nlicense: mit\n---\n# Card\n"),
        ("README.md", "---\nbase_model:\n- org/base\n---\n# Card\n"),
    ],
)
def test_the_recorded_base_is_found(file, content, tmp_path):
    folder = save(tiny("bert"), tmp_path)
    assert open_checkpoint(folder).recorded_base is None
    (folder / file).write_text(content)
    assert open_checkpoint(folder).recorded_base == "org/base"


def test_the_base_recorded_by_older_configs_is_found_unless_it_is_the_folder(tmp_path):
    folder = configure(save(tiny("bert"), tmp_path), _name_or_path="org/base")
    assert open_checkpoint(folder).recorded_base == "org/base"
    assert open_checkpoint(configure(folder, _name_or_path=str(folder))).recorded_base is None


@pytest.mark.parametrize("card", ["no front matter", "---\n: [broken\n---\n", "---\n- a list\n---\n", ""])
def test_a_card_that_records_nothing_is_no_obstacle(card, tmp_path):
    folder = save(tiny("bert"), tmp_path)
    (folder / "README.md").write_text(card)
    assert open_checkpoint(folder).recorded_base is None


def test_trusted_code_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = save(tiny("bert"), tmp_path / "source")
    (folder / "own.py").write_text(
        "from transformers import BertForSequenceClassification as Bert\n\n\nclass Own(Bert):\n    pass\n"
    )
    configure(folder, architectures=["Own"], auto_map={"AutoModelForSequenceClassification": "own.Own"})
    checkpoint = open_checkpoint(folder, trust_remote_code=True)
    assert (checkpoint.model_class.__name__, checkpoint.kind) == ("Own", "sequence_classification")
    assert_same(checkpoint, tiny("bert"))
    assert type(checkpoint.model()).__name__ == "Own"
