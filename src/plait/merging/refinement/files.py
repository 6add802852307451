"""A merged checkpoint's weights written again; apart from distillation.py because heads.py writes heads too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from plait.checkpoints.writer import save_tensors
from plait.merging.merged import TASKS, Merged


def write_back(folder: Path, merged: Merged, tasks: Iterable[str], *, encoder: bool = True) -> None:
    """Writes the encoder's and some heads' weights from memory over those on disk, in the dtypes found there."""
    if encoder:
        overwrite(folder, merged.encoder.state_dict())
    for task in tasks:
        overwrite(folder / TASKS / task, merged.task(task).state_dict())


def overwrite(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Writes the tensors of a folder's safetensors files again, with the values that `state` has of them."""
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with safe_open(file, "pt") as handle:
            stored = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
            metadata = handle.metadata()
        fresh = {
            name: state[name].detach().cpu().to(tensor.dtype) if name in state else tensor.clone()
            for name, tensor in stored.items()
        }
        del stored
        file.unlink()
        save_tensors(
            folder, fresh, stem=file.name.removesuffix(".safetensors"), max_shard_size=2**62, metadata=metadata
        )
