"""What people have instead of a checkpoint: the folder of a run, a GGUF file. Apart, as it comes before opening one."""

from __future__ import annotations

import copy
import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from plait.boundary import reading
from plait.checkpoints.headers import has_weights, read_json
from plait.checkpoints.writer import atomic_folder, save_tensors
from plait.errors import SourceError, listed
from plait.hub import cache_home

logger = logging.getLogger("plait")
_CONFIGS = ("config.json", "adapter_config.json")


def checkpoint_place(place: Path, name: str) -> Path:
    """Returns the folder of the checkpoint that is meant by a folder, or by a GGUF file.

    That is the best or the last of a run's `checkpoint-N`, and what a GGUF file is dequantised into.
    """
    if place.is_file():
        return dequantised(place, name)
    if any((place / config).is_file() for config in _CONFIGS):
        return place
    if (chosen := of_run(place, name)) is not None:
        return chosen
    files = sorted(place.glob("*.gguf"))
    if len(files) > 1:
        raise SourceError(f"{name}: several GGUF files in {place} ({listed(f.name for f in files)}): name one of them")
    return dequantised(files[0], name) if files else place


def of_run(folder: Path, name: str) -> Path | None:
    """Returns the checkpoint of a training run: the best, where its trainer_state.json names one, else the last."""
    steps = {
        int(found[1]): place
        for place in folder.glob("checkpoint-*")
        if (found := re.fullmatch(r"checkpoint-(\d+)", place.name))
        and any((place / config).is_file() for config in _CONFIGS)
    }
    if not steps or has_weights(folder):
        return None
    last = steps[max(steps)]
    state = read_json(last / "trainer_state.json") if (last / "trainer_state.json").is_file() else {}
    best = folder / Path(str(state.get("best_model_checkpoint") or "-").replace("\\", "/")).name
    chosen, why = (best, _best(state)) if best in steps.values() else (last, "the last")
    logger.warning("%s is the folder of a run: taking %s, %s of %d", name, chosen, why, len(steps))
    return chosen


def _best(state: Mapping[str, Any]) -> str:
    metric = state.get("best_metric")
    return "the best" + (f" ({metric:g})" if isinstance(metric, int | float) else "")


def dequantised(file: Path, name: str) -> Path:
    """Returns a checkpoint of float32 numbers made of a GGUF file by transformers, once: it is kept in the cache.

    Raises:
        SourceError: no package to read it, or an architecture that transformers does not read from GGUF.
    """
    if file.suffix == ".onnx":
        raise SourceError(f"{name}: {file.name} is ONNX, {GRAPH}")
    if file.suffix != ".gguf":
        raise SourceError(f"{file}: is a file, expected a checkpoint folder or a Hub id")
    about = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()[:16]
    stem = re.sub(r"[^\w.+-]", "-", file.stem)
    folder = cache_home() / "gguf" / f"{stem}-{key}"
    if folder.is_dir():
        return folder
    try:
        import gguf
    except ImportError:
        raise SourceError(f"{name}: reading {file.name} needs the package gguf: pip install 'plait[gguf]'") from None
    with reading(file, "is not read as GGUF", advice="give the checkpoint that it was made from"):
        size = 4 * sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(file).tensors)
    said = "%s: %s is dequantised into memory once and kept as float32 in %s (%.1f GB)"
    logger.warning(said, name, file.name, folder, size / 1e9)
    folder.parent.mkdir(parents=True, exist_ok=True)
    advice = "give the checkpoint that it was made from"
    with (
        atomic_folder(folder, overwrite=True) as place,
        reading(file, "is not read by transformers", advice=advice),
    ):
        _dequantise(file, place)
    return folder


GRAPH = (
    "a graph whose weights have lost their names: give the checkpoint that it was exported from (Plait reads "
    "safetensors and PyTorch files)"
)
"""Why ONNX is not read."""


def _dequantise(file: Path, folder: Path) -> None:
    """Writes weights, configuration and tokenizer of a GGUF file as a checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in tied}
    save_tensors(folder, tensors)
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what is written is not quantised
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **given).save_pretrained(folder)


def before_quantization(quantization: Any) -> str:
    """Returns what to do about quantised weights, by the method that quantised them."""
    told = quantization if isinstance(quantization, Mapping) else quantization.to_dict()
    how = str(told.get("quant_method", "unknown")).rpartition(".")[2].lower()
    said = f"give the checkpoint before quantization ({how})"
    if how in {"bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"}:
        said += ", or write it out on a GPU by from_pretrained(…).dequantize().save_pretrained(…)"
    return said


def checkpoints_below(folder: Path) -> str:
    """Returns a hint at checkpoints that lie one folder below, such as those of a training run."""
    places = (file.parent for file in folder.glob("*/config.json"))
    numbered = re.compile(r"(\d+)")
    found = sorted(places, key=lambda place: [p.zfill(12) for p in numbered.split(place.name)])
    return f"; checkpoints lie below it: {listed(map(str, found), 5)}" if found else ""
