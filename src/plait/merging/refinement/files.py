"""A merged checkpoint's weights written again; apart from distillation.py because heads.py writes heads too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from plait.checkpoints.writer import save_tensors
from plait.merging.folders import HEAD, TASKS, head_file, names_in, weight_files
from plait.merging.merged import Merged


def write_back(folder: Path, merged: Merged, tasks: Iterable[str], *, encoder: bool = True) -> None:
    """Writes the encoder's and some heads' weights from memory over those on disk, in the dtypes found there."""
    if encoder:
        state = merged.encoder.state_dict()
        prefix = merged.encoder.base_model_prefix
        overwrite(weight_files(folder), {**state, **{f"{prefix}.{name}": tensor for name, tensor in state.items()}})
    for task in tasks:
        overwrite([head_file(folder, task)], merged.task(task).state_dict())


def agree(folder: Path, tasks: Iterable[str]) -> None:
    """Writes heads that have learned over those that lie with the encoder, where a merge has one task."""
    stored = {name for file in weight_files(folder) for name in names_in(file)}
    for task in tasks:
        file = folder / TASKS / task / HEAD
        if file.is_file() and stored.issuperset(names_in(file)):
            overwrite(weight_files(folder), load_file(file))


def overwrite(files: Sequence[Path], state: Mapping[str, Tensor]) -> None:
    """Writes the tensors of safetensors files again, with the values that `state` has of them."""
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
            file.parent, fresh, stem=file.name.removesuffix(".safetensors"), max_shard_size=2**62, metadata=metadata
        )
