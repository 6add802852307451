"""Bad checkpoints get one clear line: what was found, where, what was expected, what to do."""

from __future__ import annotations

import json
import os
import pickle
import re
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from plait.checkpoints import headers as files
from plait.checkpoints.checkpoint import open_checkpoint
from plait.errors import SourceError
from tests.models import FAMILIES, save, tiny
from tests.unit.checkpoints.test_checkpoint import as_pickle, configure, rewrite


@pytest.fixture
def folder(tmp_path):
    return save(tiny("bert"), tmp_path / "source")


def refusal(origin: str | Path, **options: object) -> str:
    """Returns the message with which a checkpoint is refused, one line without a path that says nothing."""
    with pytest.raises(SourceError) as error:
        open_checkpoint(origin, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestOrigin:
    def test_a_missing_folder_names_its_neighbours(self, folder):
        assert "no such folder (did you mean 'source'? known: source)" in refusal(
            str(folder.parent / "sources")
        )

    def test_a_missing_parent_is_said(self, tmp_path):
        assert f"{tmp_path / 'no'} does not exist either" in refusal(tmp_path / "no" / "way")

    def test_a_relative_path_below_a_folder_is_no_hub_id(self, folder, monkeypatch):
        monkeypatch.chdir(folder.parent.parent)
        assert "no such folder" in refusal(f"{folder.parent.name}/sourse")

    def test_a_file_is_no_folder(self, folder):
        message = refusal(folder / "model.safetensors")
        assert message.endswith("model.safetensors: is a file, expected a checkpoint folder or a Hub id")

    def test_a_hub_id_out_of_reach(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        message = refusal("nobody/nothing", revision="v1")
        assert message == (
            "nobody/nothing at revision v1: no such folder here, and the Hub cannot be reached (HF_HUB_OFFLINE is set)"
        )

    def test_a_hub_id_that_the_hub_does_not_give(self, monkeypatch):
        def refuse(*_arguments, **_options):
            raise OSError(
                "401 Client Error. (Request ID: 1)\n\nRepository Not Found for url: https://x. Please."
            )

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=lambda *_, **__: 1))
        monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
        assert refusal("nobody/nothing") == (
            "nobody/nothing: no such folder here, and the Hub did not give it (401 Client Error. (Request ID: 1)); "
            "check the name and, for private models, `hf auth login`"
        )

    def test_neither_folder_nor_hub_id(self):
        assert "'a b': neither a folder here nor a Hub id (owner/name); check its spelling" in refusal("a b")

    def test_the_hub_is_asked_for_what_is_needed_only(self, folder, monkeypatch):
        asked = []

        def snapshot(repository, *, revision, allow_patterns):
            asked.append((repository, revision, allow_patterns))
            return str(folder)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
        checkpoint = open_checkpoint("owner/name", revision="v2")
        assert (checkpoint.name, checkpoint.origin, checkpoint.revision) == ("name", "owner/name", "v2")
        ((repository, revision, patterns),) = asked
        assert (repository, revision) == ("owner/name", "v2")
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(patterns)
        assert not any(pattern.startswith("*") or pattern.endswith(".bin") for pattern in patterns)

    def test_the_hub_is_asked_for_pickles_where_there_is_nothing_better(self, tmp_path, monkeypatch):
        folder = as_pickle(tiny("bert"), tmp_path / "snapshot")
        asked = []
        monkeypatch.setattr(
            "huggingface_hub.snapshot_download",
            lambda *_, **kw: asked.append(kw["allow_patterns"]) or str(folder),
        )
        open_checkpoint("owner/name")
        assert asked[1] == [
            "pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json", "adapter_model.bin",
        ]  # fmt: skip


class TestConfig:
    def test_missing(self, folder):
        (folder / "config.json").unlink()
        assert refusal(folder) == f"not a checkpoint: no config.json in {folder}"
        (folder / "adapter_config.json").write_text("{}")
        assert "no config.json in" in refusal(folder)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "not readable as JSON"),
            ("[]", "holds a list, expected a JSON object"),
            ("\xff\xfe", "not readable"),
        ],
    )
    def test_not_json(self, text, said, folder):
        (folder / "config.json").write_bytes(text.encode("latin-1"))
        assert said in refusal(folder)

    def test_no_model_type(self, folder):
        assert "config.json names no model_type; expected one such as \"model_type\": \"bert\"" in refusal(
            configure(folder, model_type=None)
        )

    def test_unknown_model_type(self, folder):
        message = refusal(configure(folder, model_type="nonesuch"))
        assert f"{folder}: config.json is not understood" in message
        assert "nonesuch" in message

    def test_a_value_of_the_wrong_type(self, folder):
        assert "'hidden_size' expected int, got str" in refusal(configure(folder, hidden_size="wide"))

    def test_contradictory_values(self, folder):
        message = refusal(configure(folder, num_attention_heads=5))
        assert f"{folder}: config.json does not build a BertForSequenceClassification" in message

    @pytest.mark.parametrize("name", ["BertForMultipleChoice", "Nonesuch", "T5ForConditionalGeneration"])
    def test_other_architectures(self, name, folder):
        message = refusal(configure(folder, architectures=[name]))
        assert f"architecture {name!r} is not understood; expected a transformers class for" in message

    def test_an_architecture_that_transformers_lacks(self, folder):
        folder = configure(folder, model_type="speecht5", architectures=["NoForSequenceClassification"])
        message = refusal(folder)
        assert (
            "has no sequence classification model of type 'speecht5' (NoForSequenceClassification); upgrade"
            in message
        )

    def test_several_architectures(self, folder):
        message = refusal(configure(folder, architectures=["BertModel", "BertForMaskedLM"]))
        assert "names several architectures (BertModel, BertForMaskedLM); keep one" in message

    def test_code_runs_only_when_trusted(self, folder):
        code = {"AutoModelForSequenceClassification": "evil.Model", "AutoConfig": "evil.Config"}
        (folder / "evil.py").write_text("raise SystemExit('code was run')\n")
        message = refusal(configure(folder, auto_map=code))
        assert "asks to run code that comes with it (evil.Config; evil.Model)" in message
        assert "trust_remote_code (--trust-remote-code) if you trust it" in message

    def test_quantized(self, folder):
        message = refusal(
            configure(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
        )
        assert "cannot be merged; give the checkpoint before quantization (bitsandbytes), or write it out on" in message

    def test_label_maps_with_gaps(self, folder):
        message = refusal(configure(folder, id2label={"0": "a", "2": "b", "3": "c"}, label2id=None))
        assert "id2label has the keys [0, 2, 3]; expected 0 to 2" in message

    def test_label_maps_with_equal_names(self, folder):
        message = refusal(configure(folder, id2label={"0": "a", "1": "a", "2": "b"}, label2id=None))
        assert "id2label gives several rows the names a; rename them" in message


class TestWeights:
    def test_none(self, folder):
        (folder / "model.safetensors").unlink()
        message = refusal(folder)
        assert (
            f"{folder}: no weights found; expected model.safetensors or pytorch_model.bin (or shards)"
            in message
        )

    def test_only_other_formats(self, folder):
        (folder / "model.safetensors").rename(folder / "tf_model.h5")
        assert "no weights found, only tf_model.h5; expected" in refusal(folder)

    def test_only_an_adapter(self, folder):
        (folder / "model.safetensors").unlink()
        (folder / "adapter_config.json").write_text("{}")
        assert f"{folder}: adapters of type None are not read; expected" in refusal(folder)

    def test_all_that_is_missing_extra_or_misshapen_is_listed(self, folder):
        names = {"classifier.bias": None, "bert.encoder.layer.1.output.dense.weight": None}
        rewrite(folder, names, **{"strange.weight": torch.ones(2), "classifier.weight": torch.ones(5, 16)})
        message = refusal(folder)
        assert f"{folder}: the weights do not fit BertForSequenceClassification: " in message
        for problem in (
            "missing classifier.bias",
            "missing bert.encoder.layer.1.output.dense.weight",
            "unexpected strange.weight",
            "classifier.weight is [5, 16], expected [3, 16] from config.json",
        ):
            assert problem in message

    def test_a_sequence_head_needs_its_pooler(self, folder):
        assert "missing bert.pooler.dense.weight" in refusal(
            rewrite(folder, {"bert.pooler.dense.weight": None})
        )

    def test_a_body_lacks_nothing_but_its_pooler(self, tmp_path):
        folder = rewrite(save(tiny("bert", "body"), tmp_path), {"embeddings.LayerNorm.weight": None})
        assert "missing embeddings.LayerNorm.weight" in refusal(folder)

    def test_one_parameter_under_two_names(self, folder):
        rewrite(folder, {}, **{"bert.embeddings.LayerNorm.gamma": torch.ones(16)})
        message = refusal(folder)
        assert "bert.embeddings.LayerNorm.weight" in message
        assert "are one parameter" in message

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("head", ["sequence", "token", "qa"])
    def test_a_head_is_never_lost_without_a_word(self, family, head, tmp_path):
        folder = save(tiny(family, head), tmp_path)
        for recorded in (None, [type(tiny(family, "body")).__name__]):
            message = refusal(configure(folder, architectures=recorded))
            assert "the weights hold the head of a" in message
            assert "set `architectures` to the class it was trained as" in message

    def test_integer_weights(self, folder):
        rewrite(folder, {}, **{"classifier.weight": torch.ones(3, 16, dtype=torch.int8)})
        assert "quantized or integer weights cannot be merged: classifier.weight is torch.int8" in refusal(
            folder
        )

    def test_no_tokenizer(self, tmp_path):
        checkpoint = open_checkpoint(save(tiny("bert"), tmp_path / "bare", tokenizer=False))
        with pytest.raises(
            SourceError, match=r"bare: no tokenizer in .*; expected tokenizer.json or a vocabulary"
        ):
            checkpoint.tokenizer()

    def test_a_corrupt_tokenizer(self, folder):
        (folder / "tokenizer.json").write_text("{")
        checkpoint = open_checkpoint(folder)
        with pytest.raises(SourceError, match=r"source: tokenizer in .* does not load \("):
            checkpoint.tokenizer()


class TestSafetensors:
    def test_empty(self, folder):
        (folder / "model.safetensors").write_bytes(b"")
        assert refusal(folder).endswith("model.safetensors: is empty; download or save it again")

    def test_a_header_larger_than_the_file(self, folder):
        (folder / "model.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}")
        assert "its header claims 9,223,372,036,854,775,808 bytes of a file of 10" in refusal(folder)

    def test_truncated(self, folder):
        file = folder / "model.safetensors"
        size = file.stat().st_size
        file.write_bytes(file.read_bytes()[:-1])
        assert f"its tensors end at byte {size:,} of {size - 1:,}; download or save it again" in refusal(
            folder
        )

    def test_a_pointer_of_git_lfs(self, folder):
        (folder / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
        )
        assert "a Git LFS pointer, not weights; run `git lfs pull`" in refusal(folder)

    @pytest.mark.parametrize(
        ("table", "said"),
        [
            ("no", "its header is not JSON"),
            ([1], "its header is not a JSON object"),
            ({"a": 1}, "tensor 'a' lacks a valid dtype, shape or data_offsets"),
            ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "tensor 'a' lacks a valid"),
            ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "tensor 'a' lacks a valid"),
            ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, "tensor 'a' lacks a valid"),
            (
                {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
                "of shape [2] cannot take 4 bytes",
            ),
            (
                {"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 4]}},
                "'a' has dtype C64; expected one of F64",
            ),
            ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "'a' starts at byte"),
            (
                {f"{i}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for i in range(2)},
                "tensor '1' starts at byte",
            ),
        ],
    )
    def test_headers_that_lie(self, table, said, folder):
        text = (table if isinstance(table, str) else json.dumps(table)).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        assert said in refusal(folder)

    @settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(content=st.binary(max_size=200), header=st.booleans())
    def test_no_bytes_raise_anything_but_a_source_error(self, content, header, tmp_path):
        file = tmp_path / "model.safetensors"
        file.write_bytes(len(content).to_bytes(8, "little") + content if header else content)
        try:
            files.read_safetensors_header(file)
        except SourceError as error:
            assert "\n" not in str(error)  # noqa: PT017 (not raising is fine too)


class TestShards:
    @pytest.fixture
    def sharded(self, tmp_path):
        return save(tiny("bert"), tmp_path / "source", max_shard_size="4KB")

    def index(self, folder: Path, change) -> Path:
        file = folder / "model.safetensors.index.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return folder

    @pytest.mark.parametrize(
        "name",
        [
            "../other.safetensors",
            "/etc/passwd",
            "a/../../b.safetensors",
            "..\\b.safetensors",
            "C:\\b.safetensors",
            "b.bin",
        ],
    )
    def test_names_that_leave_the_folder_are_refused(self, name, sharded):
        self.index(sharded, lambda content: content["weight_map"].update({"classifier.bias": name}))
        message = refusal(sharded)
        assert f"refused shard names {name!r}; expected .safetensors files inside it" in message

    def test_missing_shards_are_named(self, sharded):
        shards = sorted(sharded.glob("model-*.safetensors"))
        for shard in shards[:2]:
            shard.unlink()
        assert f"missing shards: {shards[0].name}; {shards[1].name}; download or copy them too" in refusal(
            sharded
        )

    def test_tensors_that_no_shard_holds_are_named(self, sharded):
        first = next(iter(sorted(sharded.glob("model-*.safetensors"))))
        self.index(sharded, lambda content: content["weight_map"].update({"ghost": first.name}))
        assert "tensors that its shards do not hold: ghost; download" in refusal(sharded)

    @pytest.mark.parametrize("value", [None, {}, [], {"a": 1}])
    def test_an_index_without_a_map(self, value, sharded):
        self.index(sharded, lambda content: content.update(weight_map=value))
        assert "no weight_map from tensor names to shard names" in refusal(sharded)


class Bomb:
    def __reduce__(self):
        return print, ("code was run",)


class TestPickles:
    def pickled(self, tmp_path: Path, change) -> Path:
        folder = as_pickle(tiny("bert"), tmp_path / "source")
        table = dict(tiny("bert").state_dict())
        change(table)
        torch.save(table, folder / "pytorch_model.bin")
        return folder

    def test_code_is_not_run(self, tmp_path, capsys):
        message = refusal(self.pickled(tmp_path, lambda table: table.update(bomb=Bomb())))
        assert message.endswith(
            "pytorch_model.bin: contains something other than tensors (print); save it as safetensors"
        )
        assert "code was run" not in capsys.readouterr().out

    def test_a_bare_pickle_is_not_run(self, tmp_path, capsys):
        folder = as_pickle(tiny("bert"), tmp_path / "source")
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb()}))
        assert refusal(folder).endswith("contains something other than tensors; save it as safetensors")
        assert "code was run" not in capsys.readouterr().out

    def test_all_that_is_no_tensor_is_listed(self, tmp_path):
        folder = self.pickled(tmp_path, lambda table: table.update(epoch=3, optimizer={"lr": 1.0}))
        message = refusal(folder)
        assert "holds more than tensors: 'epoch' is a int; 'optimizer' is a dict; expected a table" in message

    def test_something_else_than_a_table(self, tmp_path):
        folder = as_pickle(tiny("bert"), tmp_path / "source")
        torch.save([1], folder / "pytorch_model.bin")
        assert "holds more than tensors: a list" in refusal(folder)

    @pytest.mark.parametrize("keep", [0, 2, 100, -100])
    def test_truncated(self, keep, tmp_path):
        folder = as_pickle(tiny("bert"), tmp_path / "source")
        file = folder / "pytorch_model.bin"
        file.write_bytes(file.read_bytes()[:keep])
        message = refusal(folder)
        assert "pytorch_model.bin: " in message
        assert "…" not in message
        assert ("is empty" in message) is (keep == 0)

    @pytest.mark.parametrize("kind", [os.system, datetime.now])
    def test_refusals_are_in_our_own_words(self, kind, tmp_path):
        class Other:
            def __reduce__(self):
                return kind, ()

        message = refusal(self.pickled(tmp_path, lambda table: table.update(other=Other())))
        assert re.search(
            r"contains something other than tensors( \([\w.]+\))?; save it as safetensors$", message
        )

    def test_strided_tensors_are_read(self, tmp_path):
        weight = tiny("bert").state_dict()["classifier.weight"]
        folder = self.pickled(
            tmp_path, lambda table: table.update({"classifier.weight": weight.t().contiguous().t()})
        )
        checkpoint = open_checkpoint(folder)
        assert not checkpoint.header("classifier.weight").addressable
        assert torch.equal(checkpoint.read("classifier.weight"), weight)

    def test_safetensors_are_preferred(self, tmp_path):
        folder = save(tiny("bert"), tmp_path)
        (folder / "pytorch_model.bin").write_bytes(b"junk")
        assert open_checkpoint(folder).headers.keys() == load_file(folder / "model.safetensors").keys()
