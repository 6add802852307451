"""GGUF files as checkpoints: dequantised once, with their tokenizer."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import plait
from plait.checkpoints.checkpoint import open_checkpoint
from plait.errors import SourceError

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.filterwarnings("ignore")
WIDTH, HEADS, KEYS, INNER, LAYERS = 32, 4, 2, 64, 2
TOKENS = ["<s>", "</s>", "<|endoftext|>", *"abcdefghijklmnop", "Ġ", "ab", "cd"]


def written(file: Path, seed: int = 0, kind: str = "llama") -> Path:
    """Returns a GGUF file of a tiny Llama whose matrices are Q8_0."""
    draw, writer = np.random.default_rng(seed), gguf.GGUFWriter(file, kind)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    matrices = {"token_embd": (len(TOKENS), WIDTH)}
    for i in range(LAYERS):
        matrices |= {
            f"blk.{i}.attn_q": (WIDTH, WIDTH), f"blk.{i}.attn_k": (WIDTH // 2, WIDTH),
            f"blk.{i}.attn_v": (WIDTH // 2, WIDTH), f"blk.{i}.attn_output": (WIDTH, WIDTH),
            f"blk.{i}.ffn_gate": (INNER, WIDTH), f"blk.{i}.ffn_up": (INNER, WIDTH), f"blk.{i}.ffn_down": (WIDTH, INNER),
        }  # fmt: skip
    for name, shape in matrices.items():
        values = gguf.quants.quantize(draw.normal(size=shape).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", values, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    norms = ["output_norm", *(f"blk.{i}.{name}" for i in range(LAYERS) for name in ("attn_norm", "ffn_norm"))]
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_is_dequantised_once_and_merges(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "folder").mkdir()
    file, folder = written(tmp_path / "a.gguf"), written(tmp_path / "folder/b.gguf", seed=0).parent
    with caplog.at_level(logging.WARNING, "plait"):
        found = open_checkpoint(file)
    assert "a.gguf is dequantised into memory once and kept as float32 in" in caplog.text
    assert found.folder.parent == cache / "gguf"
    before = found.folder.stat().st_mtime_ns
    assert open_checkpoint(file).folder.stat().st_mtime_ns == before
    tensor = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.1.ffn_down.weight")
    wanted = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    name = next(name for name in found.body if name.endswith("layers.1.mlp.down_proj.weight"))
    assert torch.equal(found.read(found.body[name]), wanted)
    merged = plait.merge({"a": file, "b": folder}, method="average", out=tmp_path / "out")
    again = open_checkpoint(merged.folder)
    torch.testing.assert_close(again.read(again.body[name]), wanted)
    assert again.tokenizer()("ab")["input_ids"] == found.tokenizer()("ab")["input_ids"]


def test_other_files_are_named(tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=r"several GGUF files in .* \(one.gguf; two.gguf\): name one of them"):
        open_checkpoint(tmp_path)
    with pytest.raises(SourceError, match=r"one.gguf is not read as GGUF .*give the checkpoint that it was made from"):
        open_checkpoint(tmp_path / "one.gguf")
    odd = written(tmp_path / "odd.gguf", kind="strange")
    with pytest.raises(SourceError, match=r"odd.gguf is not read by transformers"):
        open_checkpoint(odd)
