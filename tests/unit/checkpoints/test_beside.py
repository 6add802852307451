"""What lies beside a model is carried, refused or named; and weights that do not fit for one reason say that reason."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

import plait
from plait.checkpoints.checkpoint import open_checkpoint
from plait.errors import MergeError, SourceError
from tests.models import save, texts, tiny, tiny_config


def embedding(folder: Path, seed: int, *, pooling: str = "cls", width: int = 8) -> str:
    """Returns an embedding model's folder as sentence-transformers writes it."""
    save(tiny("bert", "body", seed=seed), folder)
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    paths = ("", "1_Pooling", "2_Dense", "3_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    prompts = {"prompts": {"query": "q: "}, "__version__": {"pytorch": str(seed)}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    for path in paths[1:]:
        (folder / path).mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": pooling, "word_embedding_dimension": 16}))
    (folder / "2_Dense/config.json").write_text(json.dumps({"in_features": 16, "out_features": width}))
    torch.manual_seed(seed)
    save_file({"linear.weight": torch.randn(width, 16)}, folder / "2_Dense/model.safetensors", {"format": "pt"})
    return str(folder)


def test_embedding_models_keep_their_modules(tmp_path: Path) -> None:
    made = {name: embedding(tmp_path / name, i) for i, name in enumerate("xy")}
    out = plait.merge(made, method="average", weights={"x": 3, "y": 1}, out=tmp_path / "m")
    plain = plait.export(out, tmp_path / "plain", task="x")
    dense = [load_file(Path(path) / "2_Dense/model.safetensors")["linear.weight"] for path in made.values()]
    for place in (out.path, out.path / "tasks" / "y", plain):
        for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
            assert (place / name).read_bytes() == (Path(made["x"]) / name).read_bytes()
        assert json.loads((place / "1_Pooling/config.json").read_text())["pooling_mode"] == "cls"
        found = load_file(place / "2_Dense/model.safetensors")["linear.weight"]
        torch.testing.assert_close(found, 0.75 * dense[0] + 0.25 * dense[1])


def test_embedding_models_that_pool_differently_are_refused(tmp_path: Path) -> None:
    made = {"x": embedding(tmp_path / "x", 1), "y": embedding(tmp_path / "y", 2, pooling="mean")}
    with pytest.raises(MergeError, match=r"1_Pooling/config.json differs \(x: .*cls.*, y: .*mean"):
        plait.merge(made, method="average", out=tmp_path / "m")


def test_layers_of_other_widths_are_refused(tmp_path: Path) -> None:
    made = {"x": embedding(tmp_path / "x", 1), "y": embedding(tmp_path / "y", 2, width=4)}
    with pytest.raises(MergeError, match="layers behind the encoder differ"):
        plait.merge(made, method="average", out=tmp_path / "m")


def test_a_setfit_head_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = embedding(tmp_path / "x", 1)
    (Path(folder) / "model_head.pkl").write_bytes(b"never opened")
    with caplog.at_level(logging.WARNING, "plait"):
        plait.merge({"x": folder}, method="average", out=tmp_path / "m")
    assert "x: model_head.pkl (the classifier of a SetFit model) is not carried by the result" in caplog.text
    with pytest.raises(SourceError, match=r"model_head\.pkl beside it, such as SetFit writes"):
        plait.amalgamate({"x": folder, "y": folder}, texts=texts(4), student=folder, out=tmp_path / "s")


def rewritten(folder: Path, change: object) -> Path:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})  # type: ignore[operator]
    return folder


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "base_model.model."])
def test_a_prefix_before_every_name_is_read_without(prefix: str, tmp_path: Path, caplog) -> None:
    plain = save(tiny("bert"), tmp_path / "plain")
    folder = rewritten(save(tiny("bert"), tmp_path / "x"), lambda stored: {prefix + k: v for k, v in stored.items()})
    found, wanted = open_checkpoint(folder), open_checkpoint(plain)
    assert f"every tensor begins with '{prefix}'" in caplog.text
    assert found.digest == wanted.digest
    for mine, theirs in zip(found.model().parameters(), wanted.model().parameters(), strict=True):
        assert torch.equal(mine, theirs)
    other = save(tiny("bert", seed=3), tmp_path / "other")
    merged = plait.merge({"x": folder, "other": other}, method="average", out=tmp_path / "m")
    again = plait.merge({"x": plain, "other": other}, method="average", out=tmp_path / "n")
    assert merged.manifest.sources["x"]["digest"] == again.manifest.sources["x"]["digest"]


def test_a_bare_encoder_or_a_language_model_may_be_wrapped(tmp_path: Path) -> None:
    for name, model in {"bare": tiny("bert", "body"), "masked": BertForMaskedLM(tiny_config("bert", "body"))}.items():
        folder = save(model, tmp_path / name)
        wanted = open_checkpoint(folder).digest
        rewritten(folder, lambda stored: {f"module.{k}": v for k, v in stored.items()})
        assert open_checkpoint(folder).digest == wanted


def test_empty_tensors_are_named(tmp_path: Path) -> None:
    folder = rewritten(save(tiny("bert"), tmp_path), lambda stored: {k: torch.empty(0) for k in stored})
    with pytest.raises(SourceError, match=r"tensors are empty, as DeepSpeed ZeRO-3 .* zero_to_fp32.py"):
        open_checkpoint(folder)


def test_half_of_the_tensors_empty_is_named_too(tmp_path: Path) -> None:
    change = lambda stored: {k: torch.empty(0) if "encoder" in k else v for k, v in stored.items()}  # noqa: E731
    with pytest.raises(SourceError, match=r"of 41 tensors are empty \(bert.encoder.*zero_to_fp32.py"):
        open_checkpoint(rewritten(save(tiny("bert"), tmp_path), change))


def test_the_folder_of_a_run_stands_for_its_best_or_last_checkpoint(tmp_path: Path, caplog) -> None:
    for step in (1000, 500):
        save(tiny("bert", seed=step), tmp_path / f"checkpoint-{step}")
    assert open_checkpoint(tmp_path).folder == tmp_path / "checkpoint-1000"
    assert "is the folder of a run: taking" in caplog.text
    assert "the last of 2" in caplog.text
    state = {"best_model_checkpoint": "/gone/run/checkpoint-500", "best_metric": 0.91}
    (tmp_path / "checkpoint-1000/trainer_state.json").write_text(json.dumps(state))
    assert open_checkpoint(tmp_path).folder == tmp_path / "checkpoint-500"
    assert "the best (0.91) of 2" in caplog.text


def test_other_checkpoints_below_are_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(tiny("bert"), tmp_path / name)
    with pytest.raises(SourceError, match=r"checkpoints lie below it: .*one; .*two"):
        open_checkpoint(tmp_path)


def test_graphs_are_no_checkpoints(tmp_path: Path) -> None:
    folder = save(tiny("bert"), tmp_path)
    (folder / "model.safetensors").rename(folder / "model.onnx")
    with pytest.raises(SourceError, match=r"only model.onnx: ONNX has lost the weights' names, so give what it was"):
        open_checkpoint(folder)
    with pytest.raises(SourceError, match=r"model.onnx is ONNX, a graph whose weights have lost their names"):
        open_checkpoint(folder / "model.onnx")


def test_a_missing_model_type_is_named(tmp_path: Path) -> None:
    folder = save(tiny("bert"), tmp_path)
    content = json.loads((folder / "config.json").read_text())
    del content["model_type"]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(SourceError, match='"model_type": "bert", to which BertForSequenceClassification belongs'):
        open_checkpoint(folder)


def test_a_config_that_asks_for_tuples(tmp_path: Path) -> None:
    folder = save(tiny("bert", labels=2), tmp_path / "a")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "return_dict": False}))
    rows = {"text": texts(8), "label": [0, 1] * 4}
    assert plait.evaluate(str(folder), rows).to_dict()["tasks"]
    merged = plait.merge({"x": str(folder), "y": str(folder)}, method="average", out=tmp_path / "m")
    assert merged.predict(rows["text"])["y"]
    plait.finetune(str(folder), rows, tmp_path / "f", epochs=1)
    teachers = {"x": str(folder), "y": str(folder)}
    plait.amalgamate(teachers, texts=rows["text"], student=str(folder), out=tmp_path / "s", epochs=1)
    ensemble = plait.ensemble(str(folder), data=rows, members=2, shared_layers=1, batch_size=4, out=tmp_path / "e")
    assert ensemble.model.encoder.config.return_dict
    joined = plait.ensemble(sources=[str(folder), str(folder)], data=rows, out=tmp_path / "j", epochs=0)
    assert len(joined.predict(rows["text"])) == 8


def test_a_head_of_no_numbers_is_refused(tmp_path: Path) -> None:
    folder = save(tiny("bert", labels=2), tmp_path / "a")
    merged = plait.merge({"x": str(folder)}, method="average", out=tmp_path / "m").path
    file = merged / "tasks/x/head.safetensors"
    stored = load_file(file)
    stored["classifier.bias"][0] = torch.nan
    save_file(stored, file, {"format": "pt"})
    with pytest.raises(SourceError, match=r"classifier\.bias contains NaN or Inf"):
        plait.load(merged).predict(texts(2))
    rewritten(folder, lambda stored: {**stored, "classifier.bias": torch.tensor([torch.nan, 0.0])})
    with pytest.raises(SourceError, match="NaN or Inf: its weights are damaged"):
        plait.evaluate(str(folder), {"text": texts(4), "label": [0, 1] * 2})
