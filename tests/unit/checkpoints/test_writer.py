"""Writing: files that other readers understand, folders that appear whole or not at all, refusals in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from huggingface_hub.serialization._base import parse_size_to_int
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from plait.checkpoints import writer
from plait.checkpoints.headers import read_headers
from plait.checkpoints.writer import Slot, TensorWriter, atomic_folder, parse_size, save_tensors
from plait.errors import OutputError, RecipeError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "half": torch.arange(3).to(torch.bfloat16),
    "flag": torch.tensor([True, False, True]),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "ids": torch.arange(5),
}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[k], wanted[k]) and found[k].dtype == wanted[k].dtype for k in wanted
    )


def test_one_file_that_safetensors_reads(tmp_path: Path) -> None:
    files = save_tensors(tmp_path, TENSORS, metadata={"made": "here"})
    assert [f.name for f in files] == ["model.safetensors"]
    assert same(load_file(files[0]), TENSORS)
    with safe_open(files[0], "pt") as handle:
        assert handle.metadata() == {"format": "pt", "made": "here"}


def test_every_tensor_lies_at_a_multiple_of_its_item_size(tmp_path: Path) -> None:
    save_tensors(tmp_path, TENSORS)
    assert all(h.start % h.dtype.itemsize == 0 for h in read_headers(tmp_path).values())


def test_shards_with_an_index(tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.full((100,), float(i)) for i in range(5)}
    files = save_tensors(tmp_path, tensors, max_shard_size="0.9KB")
    assert [f.name for f in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2000}
    found = {name: load_file(tmp_path / file)[name] for name, file in index["weight_map"].items()}
    assert same(found, tensors)
    assert set(read_headers(tmp_path)) == set(tensors)


def test_a_tensor_larger_than_a_shard_has_one_of_its_own() -> None:
    slots = [Slot(n, torch.float32, (s,)) for n, s in (("a", 1), ("b", 100), ("c", 1))]
    assert [[s.name for s in shard] for shard in writer.split(slots, 50)] == [["a"], ["b"], ["c"]]


def test_pieces_in_any_order(tmp_path: Path) -> None:
    wanted = torch.arange(10, dtype=torch.float32)
    with TensorWriter(tmp_path, [Slot("w", torch.float32, (10,))]) as file:
        for start in (6, 0, 3):
            stop = min(10, start + (4 if start == 6 else 3))
            file.put("w", writer.bytes_of(wanted[start:stop]), start * 4)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], wanted)


def test_bytes_never_run_into_the_next_tensor(tmp_path: Path) -> None:
    slots = [Slot("w", torch.float32, (2,)), Slot("v", torch.float32, (2,))]
    with TensorWriter(tmp_path, slots) as file:
        with pytest.raises(ValueError, match="w: 12 bytes do not fit into 8"):
            file.put("w", writer.bytes_of(torch.zeros(2)), 4)
        with pytest.raises(ValueError, match="where Slot"):
            file.put_tensor("w", torch.zeros(2, dtype=torch.float16))


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("200 MB", 2 * 10**8), ("1GiB", 2**30), ("1.5kb", 1500), (7, 7)]
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "five", "5 parsecs", "0", "-1GB", 0])
def test_no_sizes(text: int | str) -> None:
    with pytest.raises(RecipeError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["5GB", "200MB", "1.5kb", "2TB", " 7 MB"])
def test_sizes_are_those_of_the_hub(text: str) -> None:
    assert parse_size(text) == parse_size_to_int(text)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    limit=st.integers(40, 100),
)
def test_shards_are_those_of_the_hub_where_every_tensor_fits(sizes: list[int], limit: int) -> None:
    slots = [Slot(f"w{at}", torch.uint8, (size,)) for at, size in enumerate(sizes)]
    plan = split_state_dict_into_shards_factory(
        {slot.name: slot for slot in slots}, get_storage_size=lambda slot: slot.size, max_shard_size=limit,
        filename_pattern="model{suffix}.safetensors",
    )  # fmt: skip
    found = [[slot.name for slot in shard] for shard in writer.split(slots, limit)]
    assert found == list(plan.filename_to_tensors.values())


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 10**6))
    with pytest.raises(OutputError, match=r"not enough space at .*: 4\.00 GB are needed, 0\.00 GB are free"):
        TensorWriter(tmp_path, [Slot("w", torch.float32, (10**9,))])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_writing(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with TensorWriter(tmp_path, [Slot("w", torch.float32, (1,))]) as file:
        monkeypatch.setattr("os.pwrite", full)
        with pytest.raises(OutputError, match="No space left on device"):
            file.put("w", writer.bytes_of(torch.zeros(1)))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        TensorWriter(tmp_path / "nowhere", [])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is a file"), atomic_folder(tmp_path / "file" / "out"):
        pass


def test_a_target_that_cannot_be_replaced_is_kept(tmp_path: Path, monkeypatch: Any) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    rename = Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError(1, "Operation not permitted")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr("plait.checkpoints.output.exchange", lambda *_: False)
    with (
        pytest.raises(OutputError, match=r"cannot replace .*not permitted"),
        atomic_folder(target, overwrite=True),
    ):
        pass
    assert contents(tmp_path) == {"out/config.json": "old"}


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with atomic_folder(target) as folder:
        (folder / "x").write_text("new")
        assert not target.exists()
        assert folder.parent == target.parent
    assert contents(tmp_path) == {"deep/out/x": "new"}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_whoever_may_read_new_files_may_read_what_is_written(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "members").mkdir()
            save_file({"w": torch.zeros(2)}, folder / "members" / "model.safetensors")  # 0600 by itself
    finally:
        os.umask(before)
    places = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    modes = [place.stat().st_mode & 0o777 for place in places]
    assert modes == [0o777 & ~umask, 0o777 & ~umask, 0o666 & ~umask]


def give_up(file: Path, failure: type[BaseException]) -> None:
    file.write_text("half")
    raise failure


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_failure_leaves_everything_as_it_was(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    with pytest.raises(failure), atomic_folder(target, overwrite=True) as folder:
        give_up(folder / "x", failure)
    assert contents(tmp_path) == {"out/config.json": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_overwrite_replaces_all_of_it(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    with atomic_folder(target, overwrite=True) as folder:
        (folder / "x").write_text("new")
        assert contents(target) == {"config.json": "old"}
    assert contents(tmp_path) == {"out/x": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("new")
    assert contents(tmp_path) == {"out/x": "new"}


def test_what_exists_is_kept_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("old")
    with (
        pytest.raises(OutputError, match=r"out exists and is not empty \(use --overwrite"),
        atomic_folder(tmp_path / "out"),
    ):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == {"out/x": "old"}


def test_what_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x").write_text("somebody else's")
    with pytest.raises(OutputError, match="exists and is not empty"), atomic_folder(tmp_path / "out"):
        shutil.copytree(tmp_path / "theirs", tmp_path / "out")
    assert contents(tmp_path / "out") == {"x": "somebody else's"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "theirs"]


def test_a_file_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("data")
    with pytest.raises(OutputError, match="is a file"), atomic_folder(tmp_path / "out", overwrite=True):
        pytest.fail("the block must not run")


def test_a_repository_or_the_working_folder_is_never_overwritten(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "code" / ".git").mkdir(parents=True)
    with pytest.raises(OutputError, match="will not be overwritten"):
        writer.check_target(tmp_path / "code", overwrite=True)
    monkeypatch.chdir(tmp_path / "code")
    with pytest.raises(OutputError, match="is the current folder or holds it"):
        writer.check_target(tmp_path, overwrite=True)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "x").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == {"x": "new"}
